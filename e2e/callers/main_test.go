// Package callers runs the unchanged programs that start slirp4netns, pasta and rootlessport, with this project's programs of
// those names.
package callers

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/skip"
)

// patience bounds one run of a program.
const patience = 60 * time.Second

// The host's addresses as testuser makes them.
const (
	host4 = "198.51.100.1"
	host6 = "2001:db8:1::1"
)

// bins holds the programs under test.
var bins string

// homes counts the users that were made.
var homes int

func TestMain(m *testing.M) {
	guest.Main()
	bins = os.Getenv("ROOTLESSNET_BIN")
	dir := ""
	if bins == "" {
		var err error
		if dir, err = build(); err != nil {
			fmt.Fprintln(os.Stderr, "callers:", err)
			os.Exit(1)
		}
		bins = dir
	}
	code := m.Run()
	if dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "bin")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"rootless-run", "rootless-net", "slirp4netns", "pasta", "rootlessport"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "../../cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			os.RemoveAll(dir)
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
}

// need makes sure that programs are installed, and that the machine has what they need.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			skip.Missing(t, "%v is not installed", p)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC || os.Getuid() == 0 {
		skip.Missing(t, "run these by `make test`: an ordinary user, a cgroup2 file system, a network of its own")
	}
}

// user is a user's home and runtime directories, and environment.
type user struct {
	*testing.T
	home, runtime string
	env           []string
}

func newUser(t *testing.T) *user {
	t.Helper()
	// A short name: paths of unix sockets with a container's whole id are made of it.
	homes++
	home := filepath.Join(os.TempDir(), fmt.Sprintf("h%d", homes))
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	u := &user{T: t, home: home, runtime: filepath.Join(home, "r")}
	for _, dir := range []string{u.runtime, filepath.Join(home, "helpers")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	u.env = append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+u.runtime, "TMPDIR="+home)
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	return u
}

// command prepares a program.
func (u *user) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = u.env, u.home
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// try runs a program and returns what it printed.
func (u *user) try(argv ...string) (string, error) {
	u.Helper()
	var out bytes.Buffer
	err := u.execute(&out, &out, argv...)
	return out.String(), err
}

// separately is try with what the program printed on either stream.
func (u *user) separately(argv ...string) (string, string, error) {
	u.Helper()
	var stdout, stderr bytes.Buffer
	err := u.execute(&stdout, &stderr, argv...)
	return stdout.String(), stderr.String(), err
}

func (u *user) execute(stdout, stderr io.Writer, argv ...string) error {
	u.Helper()
	cmd := u.command(argv...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = fmt.Errorf("left its output open: %w", err)
	}
	return err
}

// run is try for what must succeed.
func (u *user) run(argv ...string) string {
	u.Helper()
	out, err := u.try(argv...)
	if err != nil {
		u.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

// expect fails the test if a text lacks a part.
func expect(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: no %q in\n%s", what, p, text)
		}
	}
}

// eventually waits until ok returns "", and fails with what it returned last.
func eventually(t *testing.T, within time.Duration, ok func() string) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		problem := ok()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", within, problem)
		}
	}
}

// running are our processes of that name, by pid.
func running(name string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		word, _, _ := strings.Cut(string(text), "\x00")
		var pid int
		if err != nil || filepath.Base(word) != name {
			continue
		}
		if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err != nil {
			continue
		}
		if syscall.Kill(pid, 0) == nil && sameNetwork(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sameNetwork leaves out processes that are not of the tests: those in another network namespace. A process that is not
// dumpable does not show its namespace and counts, because this project's helpers are not dumpable.
func sameNetwork(pid int) bool {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return true
	}
	ours, err := os.Readlink("/proc/self/ns/net")
	return err == nil && ours == theirs
}

// noneLeft expects that no helper outlives what it was started for.
func noneLeft(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, 5*time.Second, func() string {
		for _, n := range names {
			if pids := running(n); len(pids) > 0 {
				return fmt.Sprintf("%s still runs: %v", n, pids)
			}
		}
		return ""
	})
}

// image writes a file system with this program, as containerProgram, and busybox to path.
func image(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "run", "root", "var"} {
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	files := map[string]string{strings.TrimPrefix(containerProgram, "/"): "/proc/self/exe", "bin/busybox": "/bin/busybox"}
	for _, lib := range libraries() {
		files[strings.TrimPrefix(lib, "/")] = lib
	}
	for name, from := range files {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	for _, applet := range []string{"sh", "ip", "cat", "sleep", "true", "wget"} {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
			return err
		}
	}
	return w.Close()
}

// libraries are the shared libraries of this program: none, except with the race detector libc and the dynamic linker.
func libraries() (paths []string) {
	exe, err := elf.Open("/proc/self/exe")
	if err != nil {
		return nil
	}
	defer exe.Close()
	if s := exe.Section(".interp"); s != nil {
		if path, err := s.Data(); err == nil {
			paths = append(paths, string(bytes.TrimRight(path, "\x00")))
		}
	}
	maps, _ := os.ReadFile("/proc/self/maps")
	for _, word := range strings.Fields(string(maps)) {
		if strings.HasPrefix(word, "/") && strings.Contains(word, ".so") && !slices.Contains(paths, word) {
			paths = append(paths, word)
		}
	}
	return paths
}
