package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/subid"
	"rootlessnet/netns"
)

func init() { Init() }

// supervisorEnv makes the test binary a supervisor that a test can kill: it starts a sandbox that runs the script in the
// variable, and waits.
const supervisorEnv = "USERNS_TEST_SUPERVISOR"

func TestMain(m *testing.M) {
	if script := os.Getenv(supervisorEnv); script != "" {
		os.Exit(beSupervisor(script))
	}
	code := m.Run()
	if code == 0 {
		code = checkLeaks()
	}
	os.Exit(code)
}

// checkLeaks finds goroutines, children and descriptors that are left after the tests.
func checkLeaks() int {
	var n int
	for range 50 {
		if n = runtime.NumGoroutine(); n <= 2 { // this one, and the one that receives signals
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n > 2 {
		buf := make([]byte, 1<<16)
		fmt.Fprintf(os.Stderr, "leaked goroutines:\n%s\n", buf[:runtime.Stack(buf, true)])
		return 1
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		fmt.Fprintf(os.Stderr, "leaked child: %d, %v\n", pid, err)
		return 1
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.Contains(to, "/dev/net/tun") || strings.HasPrefix(to, "/proc/") && strings.Contains(to, "/ns/") {
			fmt.Fprintf(os.Stderr, "leaked descriptor: %s\n", to)
			return 1
		}
	}
	return 0
}

func beSupervisor(script string) int {
	if err := CloseInherited(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg := Config{Network: NetworkNone, PIDNamespace: os.Getenv("USERNS_TEST_PIDNS") != ""}
	s, err := Start(context.Background(), cfg)
	if err == nil {
		err = Confine()
		if errors.Is(err, syscall.ENOTSUP) && os.Getuid() == 0 {
			err = nil // a race-detector build has cgo, and root's capabilities stay; TestConfined says so
		}
	}
	if err == nil {
		fmt.Printf("init %d\n", s.InitPID()) // before anything the script writes
		_, err = s.Run(Command{Argv: []string{"sh", "-c", script}, Stdout: os.Stdout, Stderr: os.Stderr})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code, err := s.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	s.Close()
	return code
}

// start starts a sandbox. On a machine without user namespaces it skips the test, or in CI fails it.
func start(t *testing.T, cfg Config) *Sandbox {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		if errors.Is(err, syscall.EPERM) && cfg.Link.Kind == "" && !cfg.PIDNamespace {
			skip.Missing(t, "user namespaces: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// run runs a shell script in s and returns what it wrote, and its exit code.
func run(t *testing.T, s *Sandbox, script string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = s.Run(Command{Argv: []string{"sh", "-c", script}, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	code, err := s.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), code
}

func TestExitCodes(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		for script, want := range map[string]int{
			"exit 0": 0, "exit 42": 42, "kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9,
		} {
			s := start(t, Config{Network: NetworkNone, PIDNamespace: pidns})
			if _, code := run(t, s, script); code != want {
				t.Errorf("pidns %v, %q: %d, want %d", pidns, script, code, want)
			}
		}
	}
}

func TestCannotStart(t *testing.T) {
	s := start(t, Config{Network: NetworkNone})
	dir := t.TempDir()
	noInterp := filepath.Join(dir, "script")
	if err := os.WriteFile(noInterp, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte{1, 2, 3, 4}, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv []string
		dir  string
		code int
		text string
	}{
		{[]string{"no-such-command"}, "", 127, `exec: "no-such-command": executable file not found in $PATH`},
		{[]string{"/no/such"}, "", 127, `exec: "/no/such": stat /no/such: no such file or directory`},
		{[]string{"/etc"}, "", 126, `exec: "/etc": is a directory`},
		{[]string{"/etc/passwd"}, "", 126, `exec: "/etc/passwd": permission denied`},
		{[]string{noInterp}, "", 127, "exec " + noInterp + ": no such file or directory"},
		{[]string{garbage}, "", 126, "exec " + garbage + ": exec format error"},
		{[]string{"true"}, "/no/such", 126, `chdir to cwd ("/no/such"): no such file or directory`},
		{nil, "", 125, "no command specified"},
	} {
		_, err := s.Run(Command{Argv: c.argv, Dir: c.dir})
		var ee *ExecError
		if !errors.As(err, &ee) || ee.Code != c.code || ee.Error() != c.text {
			t.Errorf("%q: got %v (%+v), want %d %s", c.argv, err, ee, c.code, c.text)
		}
	}
	if out, code := run(t, s, "echo still here"); out != "still here" || code != 0 {
		t.Errorf("after failures: %q %d", out, code)
	}
	if _, err := s.Run(Command{Argv: []string{"true"}}); !errors.Is(err, ErrClosed) {
		t.Errorf("run after the end: %v", err)
	}
}

func TestIDMaps(t *testing.T) {
	uid, gid := os.Getuid(), os.Getgid()
	const script = "id -u; id -g; echo $(cat /proc/self/uid_map); grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr -d '\t' | tr '\n' ' '"
	none := "CapInh:0000000000000000 CapPrm:0000000000000000 CapEff:0000000000000000 CapAmb:0000000000000000"
	for _, c := range []struct {
		m    IDMap
		want string
		caps bool
	}{
		{IDMapRoot, fmt.Sprintf("0\n0\n0 %d 1\n", uid), true},
		{IDMapKeepID, fmt.Sprintf("%d\n%d\n%d %d 1\n", uid, gid, uid, uid), uid == 0},
		{IDMapAuto, fmt.Sprintf("0\n0\n0 %d 1", uid), true},
	} {
		s := start(t, Config{Network: NetworkNone, IDMap: c.m})
		out, code := run(t, s, script)
		if code != 0 || !strings.HasPrefix(out, c.want) {
			t.Errorf("%s: got %q (%d), want %q…", c.m, out, code, c.want)
		}
		if c.caps == strings.Contains(out, none) {
			t.Errorf("%s: capabilities: %s", c.m, out)
		}
		if !strings.Contains(out, "CapInh:0000000000000000") || !strings.Contains(out, "CapAmb:0000000000000000") {
			t.Errorf("%s: inheritable or ambient capabilities: %s", c.m, out)
		}
	}
}

// TestAutoRanges: with subordinate ranges, a file can be given to uid 1 inside.
func TestAutoRanges(t *testing.T) {
	ranges, _ := subid.Read("/etc/subuid", os.Getenv("USER"), os.Getuid(), maxSubRanges)
	if _, err := exec.LookPath("newuidmap"); err != nil || len(ranges) == 0 {
		skip.Missing(t, "newuidmap and ranges of this user in /etc/subuid")
	}
	s := start(t, Config{Network: NetworkNone, IDMap: IDMapAuto})
	name := filepath.Join(t.TempDir(), "f")
	out, code := run(t, s, fmt.Sprintf("cat /proc/self/uid_map | wc -l; touch %s && chown 1:1 %s && stat -c %%u:%%g %s; rm %s; cat /proc/sys/net/ipv4/ping_group_range", name, name, name, name))
	if code != 0 || !strings.HasPrefix(out, fmt.Sprintf("%d\n1:1\n0\t%d", 1+len(ranges), ranges[0].Count)) {
		t.Errorf("got %q (%d)", out, code)
	}
}

// TestNoInheritedFDs: the command has the descriptors 0, 1 and 2 only, whatever the supervisor has open or inherited.
func TestNoInheritedFDs(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, _, e := syscall.Syscall(syscall.SYS_FCNTL, w.Fd(), syscall.F_SETFD, 0); e != 0 {
		t.Fatal(e)
	}
	s := start(t, Config{Network: NetworkNone, Files: Files{ResolvConf: []byte("#"), Hosts: []byte("#")}})
	out, _ := run(t, s, "exec ls /proc/self/fd")
	if out != "0\n1\n2\n3" { // 3 is the directory that ls reads
		t.Errorf("descriptors: %q", out)
	}
}

func TestNamespaces(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []Network{NetworkNew, NetworkNone, NetworkHost} {
		s := start(t, Config{Network: n})
		inode := s.NetNS()
		out, _ := run(t, s, "readlink /proc/self/ns/net; cat /proc/net/dev | grep -c :; cat /sys/class/net/lo/operstate")
		lines := strings.Fields(out)
		if lines[0] != fmt.Sprintf("net:[%d]", inode) {
			t.Errorf("%s: %s, NetNS %d", n, out, inode)
		}
		if (lines[0] == own) != (n == NetworkHost) {
			t.Errorf("%s: %s, ours is %s", n, out, own)
		}
		if n == NetworkNone && lines[1] != "1" || n == NetworkNew && lines[1] != "2" {
			t.Errorf("%s: %s interfaces", n, lines[1])
		}
	}
}

func TestFiles(t *testing.T) {
	hidden := t.TempDir()
	if err := os.WriteFile(filepath.Join(hidden, "secret"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{Network: NetworkNone, Hidden: []string{hidden, "/no/such/dir"},
		Files: Files{ResolvConf: []byte("nameserver 10.0.2.3\noptions a-long-line\n"), Hosts: []byte("1.2.3.4 first\n"), Hostname: "box"}})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	big := strings.Repeat("0.0.0.0 blocked.example\n", 20000) // more than fits a packet
	if _, err := s.Run(Command{Stdin: r, Stdout: readyW, Argv: []string{"sh", "-c", fmt.Sprintf(
		`test "$(uname -n)" = box || exit 1; grep -q 10.0.2.3 /etc/resolv.conf || exit 2; grep -q first /etc/hosts || exit 3
		 test -z "$(ls %s)" || exit 4; touch %s/x || exit 5
		 grep -q ' /tmp tmpfs.*nr_inodes=16' /proc/mounts && exit 10
		 echo ready; read line
		 test "$(cat /etc/resolv.conf)" = "nameserver 9.9.9.9" || exit 6
		 test $(wc -l </etc/hosts) = 20000 || exit 7`, hidden, hidden)}}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	readyW.Close()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Error(err) // a check before the change has failed
	}
	if err := s.UpdateFiles(Files{ResolvConf: []byte("nameserver 9.9.9.9\n"), Hosts: []byte(big)}); err != nil {
		t.Error(err)
	}
	w.WriteString("go\n")
	if code, err := s.Wait(); code != 0 || err != nil {
		t.Errorf("check %d failed, %v", code, err)
	}
	if b, _ := os.ReadFile(filepath.Join(etc, hostsFile)); strings.Contains(string(b), "first") {
		t.Error("the host's file was written")
	}
}

func TestSignal(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		s := start(t, Config{Network: NetworkNone, PIDNamespace: pidns})
		if err := s.Signal(syscall.SIGTERM); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("before the start: %v", err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pid, err := s.Run(Command{Argv: []string{"sh", "-c", "trap 'exit 7' USR1; echo; while :; do sleep 0.05; done"}, Stdout: w})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		r.Read(make([]byte, 1))
		r.Close()
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(b), "exit 7") {
			t.Errorf("pidns %v: pid %d is %q, %v", pidns, pid, b, err)
		}
		if err := s.Signal(syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
		if code, _ := s.Wait(); code != 7 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestCloseInherited(t *testing.T) {
	a, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	flags := func(f *os.File) uintptr {
		n, _, e := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFD, 0)
		if e != 0 {
			t.Fatal(e)
		}
		return n
	}
	for _, f := range []*os.File{a, b} {
		syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_SETFD, 0)
	}
	if err := CloseInherited(int(b.Fd()), 2); err != nil {
		t.Fatal(err)
	}
	if flags(a) != syscall.FD_CLOEXEC || flags(b) != 0 {
		t.Errorf("closed %d, kept %d", flags(a), flags(b))
	}
	if err := CloseInherited(); err != nil {
		t.Fatal(err)
	}
	if flags(b) != syscall.FD_CLOEXEC {
		t.Error("not closed")
	}
}

// BenchmarkStart measures a sandbox from Start to Close, to be compared with `unshare -Urn true`.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		s, err := Start(b.Context(), Config{Link: testLink(netns.KindAuto), Files: Files{ResolvConf: []byte("#"), Hosts: []byte("#")}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Run(Command{Argv: []string{"true"}}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
