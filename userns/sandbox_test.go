package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() { Init() }

// supervisorEnv makes the test binary a supervisor to be killed: it starts a sandbox that runs the script in the
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

// checkLeaks finds goroutines, children and descriptors that outlive the tests.
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

// start skips, or fails in CI, where there are no user namespaces at all.
func start(t *testing.T, cfg Config) *Sandbox {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		if errors.Is(err, syscall.EPERM) && cfg.Link.Kind == "" && !cfg.PIDNamespace {
			need(t, "user namespaces: "+err.Error())
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// need reports that this machine lacks what.
func need(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("ROOTLESSNET_CI") == "1" {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("NOT TESTED, needs %s", what)
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

// With ranges, a file can be given to uid 1 inside; without, auto is root.
func TestAutoRanges(t *testing.T) {
	f, err := os.Open("/etc/subuid")
	if err != nil {
		need(t, "/etc/subuid")
	}
	defer f.Close()
	ranges, _ := parseSubIDs(f, os.Getenv("USER"), os.Getuid())
	if _, err := exec.LookPath("newuidmap"); err != nil || len(ranges) == 0 {
		need(t, "newuidmap and ranges of this user in /etc/subuid")
	}
	s := start(t, Config{Network: NetworkNone, IDMap: IDMapAuto})
	name := filepath.Join(t.TempDir(), "f")
	out, code := run(t, s, fmt.Sprintf("cat /proc/self/uid_map | wc -l; touch %s && chown 1:1 %s && stat -c %%u:%%g %s; rm %s; cat /proc/sys/net/ipv4/ping_group_range", name, name, name, name))
	if code != 0 || !strings.HasPrefix(out, fmt.Sprintf("%d\n1:1\n0\t%d", 1+len(ranges), ranges[0].Count)) {
		t.Errorf("got %q (%d)", out, code)
	}
}

// Nothing but 0, 1 and 2, whatever the supervisor has open or was given.
func TestNoStrayFDs(t *testing.T) {
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

// testLink has everything that can be set.
func testLink(kind string) Link {
	return Link{Kind: kind, MAC: []byte{2, 0, 0, 0, 0, 9}, MTU: 1500,
		Addrs:    []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")}}
}

// Each kind of device: a frame the guest sends comes out of the descriptor, and one written to it goes in.
func TestLinkKinds(t *testing.T) {
	for _, kind := range []string{KindTAP, KindTAPPlain, KindPacket, KindAuto} {
		t.Run(kind, func(t *testing.T) {
			s, err := Start(t.Context(), Config{Link: testLink(kind)})
			if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EPERM) {
				if !strings.Contains(err.Error(), "open link "+kind) || !strings.Contains(err.Error(), "doctor") {
					t.Errorf("unhelpful: %v", err)
				}
				need(t, kind+": "+err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			f, got, res := s.LinkFD()
			if f == nil || (kind != KindAuto && got != kind) {
				t.Fatalf("got %v, %q", f, got)
			}
			defer f.Close()
			if kind == KindAuto && got != KindTAP && len(res.Refused) == 0 {
				t.Errorf("%s chosen without a reason", got)
			}
			t.Logf("%s %+v", got, res)
			header := vnetHeaderLen
			if got == KindTAPPlain {
				header = 0
			}
			if (got == KindTAPPlain) == res.TSO || res.TSO != res.CSum {
				t.Errorf("offloads %+v", res)
			}
			out, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if _, err := s.Run(Command{Stdout: w, Stderr: w, Argv: []string{"sh", "-c",
				"cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /proc/net/route /proc/net/ipv6_route /proc/net/if_inet6; " +
					"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; " +
					"exec 2>/dev/null; echo x > /dev/udp/10.0.2.2/9 || bash -c 'echo x > /dev/udp/10.0.2.2/9'; sleep 1; grep 10.0.2.2 /proc/net/arp"}}); err != nil {
				t.Fatal(err)
			}
			w.Close()
			// The guest asks for its gateway: answer once, then it knows us.
			reply := func(frame []byte) []byte {
				a := make([]byte, header+42)
				b := a[header:]
				copy(b, frame[6:12])
				copy(b[6:], []byte{2, 0, 0, 0, 0, 1, 8, 6})
				copy(b[14:], frame[14:20])
				b[21] = 2
				copy(b[22:], []byte{2, 0, 0, 0, 0, 1})
				copy(b[28:], frame[38:42])
				copy(b[32:], frame[22:32])
				return a
			}
			f.SetReadDeadline(time.Now().Add(3 * time.Second))
			buf := make([]byte, 1<<16+100)
			udp := false
			for !udp {
				n, err := f.Read(buf)
				if err != nil {
					t.Fatalf("no datagram came: %v", err)
				}
				frame := buf[header:n]
				switch {
				case len(frame) >= 42 && frame[12] == 8 && frame[13] == 6:
					if _, err := f.Write(reply(frame)); err != nil {
						t.Fatal(err)
					}
				case len(frame) > 34 && frame[12] == 8 && frame[13] == 0 && frame[23] == 17:
					udp = true
				}
			}
			b, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"02:00:00:00:00:09\n1500\n", "eth0\t00000000\t0202000A\t0003",
				"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000002",
				"fd000000000000000000000000000100", "02:00:00:00:00:01", "\n0\n0\t0\n"} {
				if !strings.Contains(string(b), want) {
					t.Errorf("%q is missing in\n%s", want, b)
				}
			}
			if _, err := s.Wait(); err != nil {
				t.Error(err)
			}
		})
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
	big := strings.Repeat("0.0.0.0 blocked.example\n", 20000) // more than fits a packet
	if _, err := s.Run(Command{Stdin: r, Argv: []string{"sh", "-c", fmt.Sprintf(
		`test "$(uname -n)" = box || exit 1; grep -q 10.0.2.3 /etc/resolv.conf || exit 2; grep -q first /etc/hosts || exit 3
		 test -z "$(ls %s)" || exit 4; touch %s/x 2>/dev/null && exit 5
		 grep -q ' /tmp tmpfs.*nr_inodes=16' /proc/mounts && exit 10
		 read line
		 test "$(cat /etc/resolv.conf)" = "nameserver 9.9.9.9" || exit 6
		 test $(wc -l </etc/hosts) = 20000 || exit 7`, hidden, hidden)}}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	time.Sleep(50 * time.Millisecond)
	if err := s.UpdateFiles(Files{ResolvConf: []byte("nameserver 9.9.9.9\n"), Hosts: []byte(big)}); err != nil {
		t.Error(err)
	}
	w.WriteString("go\n")
	if code, err := s.Wait(); code != 0 || err != nil {
		t.Errorf("check %d failed, %v", code, err)
	}
	if b, _ := os.ReadFile(hostsFile); strings.Contains(string(b), "first") {
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

// uniqueSleep is a number of seconds that no other process sleeps, to find what is left of a test.
func uniqueSleep() string { return fmt.Sprintf("100%d.%d", os.Getpid(), time.Now().UnixNano()%1e9) }

// sleepers counts processes whose command line has mark.
func sleepers(t *testing.T, mark string) (n int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		b, _ := os.ReadFile(d)
		if strings.HasPrefix(string(b), "sleep\x00"+mark) {
			n++
		}
	}
	return n
}

func waitSleepers(t *testing.T, mark string, want int, limit time.Duration) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		n := sleepers(t, mark)
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes after %v, want %d", n, limit, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// daemons leaves three descendants behind: in the background, in another session, and orphaned in another session.
func daemons(mark string) string {
	return strings.ReplaceAll("sleep M & setsid sleep M & (setsid sh -c 'sleep M & sleep M' &) ;", "M", mark)
}

// Commands that are over before the answer to Run is read.
func TestShortCommands(t *testing.T) {
	for range 30 {
		s := start(t, Config{Network: NetworkHost})
		if _, err := s.Run(Command{Argv: []string{"true"}}); err != nil {
			t.Fatal(err)
		}
		if code, err := s.Wait(); code != 0 || err != nil {
			t.Fatalf("%d, %v", code, err)
		}
		s.Close()
	}
}

func TestNothingLeft(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		mark := uniqueSleep()
		s := start(t, Config{Network: NetworkNone, PIDNamespace: pidns})
		if _, err := s.Run(Command{Argv: []string{"sh", "-c", daemons(mark) + "sleep 0.2; exit 3"}}); err != nil {
			t.Fatal(err)
		}
		waitSleepers(t, mark, 4, 2*time.Second)
		if code, err := s.Wait(); code != 3 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
		waitSleepers(t, mark, 0, 0)
	}
}

func TestClose(t *testing.T) {
	mark := uniqueSleep()
	s := start(t, Config{Network: NetworkNone})
	if _, err := s.Run(Command{Argv: []string{"sh", "-c", daemons(mark) + "trap '' TERM; sleep " + mark}}); err != nil {
		t.Fatal(err)
	}
	waitSleepers(t, mark, 5, 2*time.Second)
	began := time.Now()
	s.Close()
	s.Close()
	if d := time.Since(began); d > time.Second {
		t.Errorf("took %v", d)
	}
	waitSleepers(t, mark, 0, 0)
	if code, err := s.Wait(); code != CodeFailure || !errors.Is(err, ErrClosed) {
		t.Errorf("wait: %d, %v", code, err)
	}
	if _, err := s.Run(Command{Argv: []string{"true"}}); !errors.Is(err, ErrClosed) {
		t.Errorf("run: %v", err)
	}
	if err := s.Signal(syscall.SIGTERM); !errors.Is(err, ErrClosed) {
		t.Errorf("signal: %v", err)
	}
}

func TestCancelledStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Config{Network: NetworkNone}); err == nil {
		t.Error("started")
	}
}

// The command may kill init, being the same user. It dies with it, and the supervisor notices.
func TestInitKilled(t *testing.T) {
	mark := uniqueSleep()
	s := start(t, Config{Network: NetworkNone})
	if _, err := s.Run(Command{Argv: []string{"sleep", mark}}); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(s.InitPID(), syscall.SIGKILL)
	if code, err := s.Wait(); code != CodeFailure || err == nil {
		t.Errorf("%d, %v", code, err)
	}
	waitSleepers(t, mark, 0, time.Second)
}

// supervisor starts the test binary as a supervisor in its own process group, with a stray descriptor.
func supervisor(t *testing.T, script string, env ...string) (cmd *exec.Cmd, initPID int, out io.Reader) {
	t.Helper()
	start(t, Config{Network: NetworkNone}).Close() // skips where there are no user namespaces
	cmd = exec.Command(selfExe)
	cmd.Env = append(append(os.Environ(), supervisorEnv+"="+script), env...)
	runtime.LockOSThread() // until the test ends: the parent-death signal follows the thread
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	stray, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	cmd.ExtraFiles = []*os.File{stray}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("supervisor: %q, %v", line, err)
		}
		if line = append(line, b[0]); b[0] == '\n' {
			if f := strings.Fields(string(line)); f[0] == "init" {
				initPID, _ = strconv.Atoi(f[1])
				return cmd, initPID, r
			}
			line = nil
		}
	}
}

func TestSupervisorKilled(t *testing.T) {
	for _, pidns := range []string{"", "1"} {
		for _, stopped := range []bool{false, true} {
			mark := uniqueSleep()
			cmd, initPID, _ := supervisor(t, daemons(mark)+"sleep "+mark, "USERNS_TEST_PIDNS="+pidns)
			waitSleepers(t, mark, 5, 2*time.Second)
			if stopped { // Ctrl-Z, then the terminal goes away
				syscall.Kill(-cmd.Process.Pid, syscall.SIGSTOP)
			}
			cmd.Process.Kill()
			waitSleepers(t, mark, 0, time.Second)
			deadline := time.Now().Add(time.Second)
			for syscall.Kill(initPID, 0) == nil && time.Now().Before(deadline) {
				time.Sleep(10 * time.Millisecond)
			}
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", initPID)); err == nil && !strings.Contains(string(b), ") Z ") {
				t.Errorf("init is still there: %s", b)
			}
		}
	}
}

// Ctrl-C goes to the whole process group: the command decides, init stays and reports.
func TestTerminalSignals(t *testing.T) {
	cmd, initPID, out := supervisor(t, "trap 'exit 9' INT; trap '' QUIT HUP TERM; echo ready; while :; do sleep 0.02; done")
	b := make([]byte, 6)
	if _, err := io.ReadFull(out, b); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT} {
		syscall.Kill(initPID, sig)
	}
	time.Sleep(50 * time.Millisecond)
	if err := syscall.Kill(initPID, 0); err != nil {
		t.Fatalf("init died of a terminal's signal: %v", err)
	}
	var kill []int
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", initPID))
	for _, d := range dirs {
		kids, _ := os.ReadFile(d)
		for _, k := range strings.Fields(string(kids)) {
			pid, _ := strconv.Atoi(k)
			pgid, err := syscall.Getpgid(pid)
			if err != nil || pgid != cmd.Process.Pid {
				t.Errorf("the command is in process group %d, want %d, %v", pgid, cmd.Process.Pid, err)
			}
			kill = append(kill, pid)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for _, pid := range kill {
		syscall.Kill(pid, syscall.SIGINT)
	}
	select {
	case err := <-ended:
		if cmd.ProcessState.ExitCode() != 9 {
			t.Errorf("%v", err)
		}
		return
	case <-time.After(5 * time.Second):
	}
	t.Errorf("the command %v does not end", kill)
	cmd.Process.Kill()
	<-ended
}

// A confined supervisor: no privilege to gain, not readable, no stray descriptor for what it executes; its sandbox can
// still be entered.
func TestConfined(t *testing.T) {
	mark := uniqueSleep()
	cmd, initPID, out := supervisor(t, "echo; sleep "+mark)
	out.Read(make([]byte, 1)) // confined before the command started
	if _, _, e := syscall.AllThreadsSyscall(syscall.SYS_GETPID, 0, 0, 0); e == syscall.ENOTSUP && os.Getuid() == 0 {
		need(t, "an ordinary user, or CGO_ENABLED=0")
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s: no %q", task, want)
			}
		}
	}
	if os.Getuid() != 0 {
		if _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid)); err == nil {
			t.Error("the supervisor is dumpable")
		}
	}
	code, err := ExecIn(t.Context(), initPID, Command{Argv: []string{"sh", "-c", "test $(id -u) = 0 && exit 5"}})
	if code != 5 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
}

func TestExecIn(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		for _, ids := range []IDMap{IDMapRoot, IDMapKeepID, IDMapAuto} {
			s := start(t, Config{Network: NetworkNone, IDMap: ids, PIDNamespace: pidns,
				Files: Files{Hostname: "target", Hosts: []byte("1.1.1.1 here\n")}})
			mark := uniqueSleep()
			if _, err := s.Run(Command{Argv: []string{"sleep", mark}}); err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			code, err := ExecIn(t.Context(), s.InitPID(), Command{Stdout: w, Stderr: w, Dir: "/etc",
				Argv: []string{"sh", "-c", "uname -n; id -u; cat hosts; readlink /proc/self/ns/net; ls /proc/self/fd | wc -l; sleep " + mark + " & exit 4"}})
			w.Close()
			out, _ := io.ReadAll(r)
			r.Close()
			uid := 0
			if ids == IDMapKeepID {
				uid = os.Getuid()
			}
			want := fmt.Sprintf("target\n%d\n1.1.1.1 here\nnet:[%d]\n4\n", uid, s.NetNS())
			if code != 4 || err != nil || string(out) != want {
				t.Errorf("%s, pidns %v: %d, %v, %q, want %q", ids, pidns, code, err, out, want)
			}
			waitSleepers(t, mark, 1, 0) // the target's own
			code, err = ExecIn(t.Context(), s.InitPID(), Command{Argv: []string{"no-such-command"}})
			var ee *ExecError
			if code != 127 || !errors.As(err, &ee) {
				t.Errorf("%d, %v", code, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if code, err = ExecIn(ctx, s.InitPID(), Command{Argv: []string{"sleep", mark}}); code != CodeFailure || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cancelled: %d, %v", code, err)
			}
			cancel()
			waitSleepers(t, mark, 1, 0)
			s.Close()
		}
	}
	if _, err := ExecIn(t.Context(), 1<<22-1, Command{Argv: []string{"true"}}); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("no such process: %v", err)
	}
}

// A joined sandbox has the network and the files of its target, and outlives it.
func TestJoin(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		for _, own := range []bool{false, true} {
			target := start(t, Config{Network: NetworkNone, PIDNamespace: pidns,
				Files: Files{ResolvConf: []byte("nameserver 10.0.2.3\n"), Hostname: "target"}})
			if _, err := target.Run(Command{Argv: []string{"sleep", "100"}}); err != nil {
				t.Fatal(err)
			}
			inode := target.NetNS()
			s, err := Start(t.Context(), Config{Network: NetworkJoin, JoinPID: target.InitPID(), PIDNamespace: own})
			if err != nil {
				t.Errorf("target pidns %v, own %v: %v", pidns, own, err)
				continue
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := target.UpdateFiles(Files{ResolvConf: []byte("nameserver 8.8.8.8\n")}); err != nil {
				t.Error(err)
			}
			target.Close()
			pid, err := s.Run(Command{Stdout: w, Stderr: w, Argv: []string{"sh", "-c", "id -u; uname -n; cat /etc/resolv.conf; readlink /proc/self/ns/net; cat /proc/$$/comm; ls /proc | grep -c '^[0-9]'; sleep 0.1"}})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(b) != "sh\n" {
				t.Errorf("pid %d is %q, %v", pid, b, err)
			}
			out, _ := io.ReadAll(r)
			r.Close()
			want := fmt.Sprintf("0\ntarget\nnameserver 8.8.8.8\nnet:[%d]\nsh\n", inode)
			if !strings.HasPrefix(string(out), want) {
				t.Errorf("target pidns %v, own %v: %q, want %q", pidns, own, out, want)
			}
			few := len(strings.Fields(string(out))) > 0 && len(out) > 0 && strings.HasSuffix(string(out), "\n4\n")
			if own != few {
				t.Errorf("own pid namespace %v: processes seen: %q", own, out)
			}
			if code, err := s.Wait(); code != 0 || err != nil {
				t.Errorf("%d, %v", code, err)
			}
			s.Close()
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
		t.Errorf("stray %d, kept %d", flags(a), flags(b))
	}
	if err := CloseInherited(); err != nil {
		t.Fatal(err)
	}
	if flags(b) != syscall.FD_CLOEXEC {
		t.Error("not closed")
	}
}

// BenchmarkStart is what a sandbox costs from nothing to nothing, to be compared with `unshare -Urn true`.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		s, err := Start(b.Context(), Config{Link: testLink(KindAuto), Files: Files{ResolvConf: []byte("#"), Hosts: []byte("#")}})
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
