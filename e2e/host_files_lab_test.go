package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// onHostFiles is the first argument of the test binary that starts a program on a host with an /etc and a /run of the test:
// ETC RUN PROGRAM [ARG...].
const onHostFiles = "on-host-files"

// enterHostFiles mounts the directories in the mount namespace of this process, which is its own, and executes the program.
func enterHostFiles(args []string) error {
	for from, to := range map[string]string{args[0]: "/etc", args[1]: "/run"} {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", from, to, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec(args[2], args[2:], os.Environ())
}

// hostFiles is a host whose files of name resolution the test may replace: outside, in directories of its own, where
// nothing keeps it from doing so.
type hostFiles struct {
	*lab
	etc, run string
	holder   int // pid
}

func newHostFiles(t *testing.T) *hostFiles {
	t.Helper()
	l := newLab(t)
	l.serveDNS()
	h := &hostFiles{lab: l, etc: filepath.Join(l.runtime, "etc"), run: filepath.Join(l.runtime, "run")}
	for _, dir := range []string{h.etc + "/conf.d", h.etc + "/old.d", h.run + "/NetworkManager", h.run + "/systemd"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/resolv.conf":   h.resolvConf(),
		"etc/hosts":         "192.0.2.1 of-the-host\n",
		"etc/nsswitch.conf": "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n",
		"etc/hostname":      "the-host\n",
		"etc/edited":        "edited 1\n",
		"etc/replaced":      "replaced 1\n",
		"etc/removed":       "removed 1\n",
		"etc/conf.d/a":      "a 1\n",
		"etc/old.d/a":       "old 1\n",

		"run/NetworkManager/resolv.conf": "nameserver 127.0.0.53\n",
		"run/NetworkManager/other":       "other 1\n",
	} {
		h.write(filepath.Join(h.runtime, name), text)
	}
	h.link("edited", h.etc+"/link")
	h.hold()
	return h
}

// resolvConf names the tests' server.
func (h *hostFiles) resolvConf() string { return fmt.Sprintf("nameserver %v\n", topo.There4) }

// write replaces the file by rename, as most programs do.
func (h *hostFiles) write(path, text string) {
	h.Helper()
	temporary := filepath.Join(h.runtime, "temporary")
	err := os.WriteFile(temporary, []byte(text), 0o644)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		h.Fatal(err)
	}
}

// link replaces the file by a symbolic link.
func (h *hostFiles) link(target, path string) {
	h.Helper()
	temporary := filepath.Join(h.runtime, "temporary")
	err := os.Symlink(target, temporary)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		h.Fatal(err)
	}
}

func (h *hostFiles) remove(path string) {
	h.Helper()
	if err := os.RemoveAll(path); err != nil {
		h.Fatal(err)
	}
}

// content is every file of the host with its text or target.
func (h *hostFiles) content() map[string]string {
	h.Helper()
	all := make(map[string]string)
	for _, root := range []string{h.etc, h.run} {
		err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			text := []byte(nil)
			switch {
			case info.Mode().IsRegular():
				text, err = os.ReadFile(path)
			case info.Mode()&os.ModeSymlink != 0:
				var target string
				target, err = os.Readlink(path)
				text = []byte(target)
			}
			all[path] = fmt.Sprint(info.Mode(), " ", string(text))
			return err
		})
		if err != nil {
			h.Fatal(err)
		}
	}
	return all
}

// hold starts the process whose mount namespace the host's files are in.
func (h *hostFiles) hold() {
	h.Helper()
	cmd := h.Here.Command(self(), onHostFiles, h.etc, h.run, "/bin/sh", "-c", "echo; exec sleep 1000")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	h.launch(cmd)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		h.Fatalf("the host's files: %v", err)
	}
	h.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	h.holder = cmd.Process.Pid
}

// command prepares one of our programs on this host, as the same user without privilege.
func (h *hostFiles) command(name string, args ...string) *topo.Cmd {
	cmd := h.lab.command(name, args...)
	enter := h.Here.Command(append([]string{"nsenter", "--target", strconv.Itoa(h.holder), "--user", "--mount", "--preserve-credentials", "--wd=/", "--"}, cmd.Args...)...)
	enter.Env = cmd.Env
	return enter
}

var boxes int

// start runs a sandbox with the agent inside on this host.
func (h *hostFiles) start(flags ...string) *sandbox {
	h.Helper()
	boxes++
	name := fmt.Sprintf("filed%d", boxes)
	args := append(append([]string{"--name", name}, flags...), "--")
	return h.agent(name, h.command("rootless-run", append(args, agentProgram()...)...))
}

// text is a file inside, "" if there is none.
func text(s *sandbox, path string) string {
	s.Helper()
	return do(s, guest.ReadFile{Path: path}).Text
}

// wantText expects the text of files inside.
func (s *sandbox) wantText(when string, want map[string]string) {
	s.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got := text(s, path); got != want[path] {
			s.Errorf("%s: %s has %q, want %q", when, path, got, want[path])
		}
	}
}

// oursInside are the files of name resolution as the sandbox has them from its start.
func oursInside(s *sandbox) map[string]string {
	s.Helper()
	files := make(map[string]string)
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/hostname", "/run/NetworkManager/resolv.conf"} {
		files[path] = text(s, path)
	}
	for path, part := range map[string]string{
		"/etc/resolv.conf": "nameserver 10.0.2.2\n", "/run/NetworkManager/resolv.conf": "nameserver 10.0.2.2\n",
		"/etc/hosts": "host.docker.internal", "/etc/nsswitch.conf": "passwd: files\nhosts: files dns\n", "/etc/hostname": do(s, guest.ReadHostname{}) + "\n",
	} {
		if !strings.Contains(files[path], part) {
			s.Errorf("at the start %s has %q, want %q", path, files[path], part)
		}
	}
	return files
}

// wantResolved expects that the C library inside finds a name by DNS, and one of our hosts file.
func (s *sandbox) wantResolved(when string) {
	s.Helper()
	eventually(s.T, 10*time.Second, func() string {
		ran := do(s, guest.RunShell{Script: "getent ahostsv4 example.test && getent hosts host.docker.internal"})
		if ran.Code != 0 || !strings.Contains(ran.Output, "192.0.2.80") {
			return fmt.Sprintf("%s: %+v", when, ran)
		}
		return ""
	})
}
