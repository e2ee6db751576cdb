package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// processes are those that the lab started, and all that have its runtime directory in their environment. That of a
// supervisor cannot be read, as it is not dumpable.
func (l *lab) processes() (pids []int) {
	l.Helper()
	for _, cmd := range l.started {
		if alive(cmd.Process.Pid) {
			pids = append(pids, cmd.Process.Pid)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		l.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && bytes.Contains(env, []byte("XDG_RUNTIME_DIR="+l.runtime)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// nothingLeft expects that no process of the lab is left within that time.
func (l *lab) nothingLeft(within time.Duration) {
	l.Helper()
	eventually(l.T, within, func() string {
		if pids := l.processes(); len(pids) > 0 {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[0]))
			return fmt.Sprintf("left running: %v, %q", pids, line)
		}
		return ""
	})
}

// portFree expects that a TCP port of the host can be bound within that time.
func (l *lab) portFree(port uint16, within time.Duration) {
	l.Helper()
	eventually(l.T, within, func() string {
		for _, f := range l.families() {
			listener, err := l.Here.Listen("tcp", at(f.here, port).String())
			if err != nil {
				return err.Error()
			}
			listener.Close()
		}
		return ""
	})
}

// files below the runtime directory that are no directories.
func (l *lab) files() (paths []string) {
	l.Helper()
	err := filepath.WalkDir(l.runtime, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	return paths
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(text[bytes.LastIndexByte(text, ')'):], []byte(") Z"))
}

func TestScorecard36KilledSupervisor(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80")
		s.listenTCP(guest.Echo, 80)
		daemon := do(s, guest.StartDaemon{})
		if !alive(daemon) {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", daemon))
			t.Fatalf("the daemon, process %d, does not run: %s, %v; stderr:\n%s", daemon, stat, err, s.stderr)
		}
		if err := s.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		l.nothingLeft(time.Second)
		eventually(t, 500*time.Millisecond, func() string { // one that is ending has no environment any more
			if alive(daemon) {
				return "the command's daemon still runs"
			}
			return ""
		})
		l.portFree(8080, time.Second) // its last thread may still be closing it
		// The files that the killed supervisor left do not prevent the next one from starting.
		next := l.start("-p", "8080:80")
		if got := next.manage("ps"); strings.Contains(got, s.name+" ") {
			t.Errorf("ps lists the killed one:\n%s", got)
		}
	})
}

func TestScorecard37ExitCodes(t *testing.T) {
	l := newLab(t)
	notExecutable := filepath.Join(l.runtime, "plain")
	if err := os.WriteFile(notExecutable, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"bridge", "none", "host"} {
		for _, c := range []struct {
			argv []string
			want int
		}{
			{program(guest.Exit{Code: 0}), 0},
			{program(guest.Exit{Code: 42}), 42},
			{[]string{notExecutable}, 126},
			{[]string{"/"}, 126},
			{[]string{"no-such-command-anywhere"}, 127},
			{program(guest.Die{Signal: syscall.SIGKILL}), 128 + 9},
			{program(guest.Die{Signal: syscall.SIGTERM}), 128 + 15},
		} {
			if r := l.once([]string{"--network", network}, c.argv...); r.code != c.want {
				t.Errorf("%s, %v: exit %d, want %d; stderr:\n%s", network, c.argv[len(c.argv)-1], r.code, c.want, r.stderr)
			}
		}
	}
	for _, flags := range [][]string{{"--no-such-flag"}, {"--network", "nonsense"}, {"-p", "x:80"}, {"--network", "container:nobody"}} {
		if r := l.once(flags, "/bin/true"); r.code != 125 || r.stderr == "" {
			t.Errorf("%v: exit %d, %q; want 125 and an error message", flags, r.code, r.stderr)
		}
	}
}

func TestScorecard37SignalsAreForwarded(t *testing.T) {
	l := newLab(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGINT} {
		if signal.Ignored(sig) { // as by nohup: a child inherits that
			t.Logf("not tried: %v is ignored here", sig)
			continue
		}
		cmd := l.command("rootless-run", append([]string{"--"}, program(guest.CatchSignal{Signal: sig, Code: 7})...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 64)); err != nil { // the reply means that it waits
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("%v: exit %d, want the command's 7", sig, code)
		}
	}
	// A command that does not catch the signal is ended by it, and the exit status reports that.
	cmd := l.command("rootless-run", "--", "/bin/sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() string {
		if strings.Contains(l.manage("ps"), "sleep") {
			return ""
		}
		return "not in ps"
	})
	_ = cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 128+15 {
		t.Errorf("exit %d, want 143", code)
	}
}

func TestScorecard38NothingLeft(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		mounts := mountsBelow(t, l.runtime)
		s := l.start("-p", "8080:80")
		do(s, guest.StartDaemon{})
		s.inside.CloseInput()
		s.inside.Drain()
		// The end of the command's output is its end, or nearly.
		l.nothingLeft(500 * time.Millisecond)
		_ = s.cmd.Wait()
		if code := s.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit %d; stderr:\n%s", code, s.stderr)
		}
		if left := l.files(); len(left) > 0 {
			t.Errorf("files left: %v", left)
		}
		if after := mountsBelow(t, l.runtime); after != mounts {
			t.Errorf("mounts left: %d, before %d", after, mounts)
		}
		l.portFree(8080, 0)
	})
}

func mountsBelow(t *testing.T, dir string) int {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), " "+dir+"/")
}

// TestFailedStartLeavesNothing: a port that is in use is an error before the command starts.
func TestFailedStartLeavesNothing(t *testing.T) {
	l := newLab(t)
	_, _ = l.serve(l.Here, at(any4, 8081), guest.Silent)
	mark := filepath.Join(l.runtime, "ran")
	r := l.once([]string{"-p", "8080:80", "-p", "8081:81"}, "/bin/sh", "-c", "echo > "+mark)
	if r.code != 125 || !strings.Contains(r.stderr, "failed to bind host port 0.0.0.0:8081/tcp: address already in use") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the command was started")
	}
	if c, err := l.Here.Dial("tcp", at(loopback4, 8080).String(), time.Second); err == nil {
		c.Close()
		t.Error("the other port is still open")
	}
	l.nothingLeft(500 * time.Millisecond)
	if left := l.files(); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
}

// TestNetworkOutlivesItsFirstMember: a network stays until its last member has ended.
func TestNetworkOutlivesItsFirstMember(t *testing.T) {
	onEveryDatapath(t, containerOutlivesItsFirst)
}

func containerOutlivesItsFirst(t *testing.T, l *lab) {
	srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
	first := l.start("-p", "8080:80")
	second := l.start("--network", "container:"+first.name)
	first.inside.CloseInput()
	time.Sleep(300 * time.Millisecond)
	second.wantEcho(srv, "after the first has ended")
	if r := l.once([]string{"--network", "container:" + first.name}, "true"); r.code != 125 || !strings.Contains(r.stderr, "cannot join network namespace of a non running container: "+first.name) {
		t.Errorf("joined after the first has ended: %d, %s", r.code, r.stderr)
	}
	if r := l.finish(l.command("rootless-net", "exec", first.name, "true")); r.code == 0 || !strings.Contains(r.stderr, first.name+" is not running") {
		t.Errorf("exec after the first has ended: %d, %s", r.code, r.stderr)
	}
	second.listenTCP(guest.Echo, 80)
	l.wantAnswer(l.There, at(topo.Here4, 8080), "published port after the first has ended")
	second.stop()
	first.stop()
	l.nothingLeft(time.Second)
}

// TestUserNamespaces: the command has its caller's ids and no capability unless it asks to be root.
func TestUserNamespaces(t *testing.T) {
	l := newLab(t)
	const capNetAdmin = 1 << unix.CAP_NET_ADMIN
	if got, r := once(l, guest.ReadIdentity{}, "--userns", "root"); r.code != 0 || got.UID != 0 || got.GID != 0 || got.Capabilities>>40 != 1 || got.Capabilities&capNetAdmin == 0 {
		t.Errorf("root: exit %d, %+v; %s", r.code, got, r.stderr)
	}
	want := guest.Identity{UID: os.Getuid(), GID: os.Getgid()}
	for _, flags := range [][]string{nil, {"--userns", "keep-id"}, {"--pid"}, {"--network", "none"}, {"--network", "host"}} {
		if got, r := once(l, guest.ReadIdentity{}, flags...); r.code != 0 || got != want {
			t.Errorf("%v: exit %d, %+v, want %+v; %s", flags, r.code, got, want, r.stderr)
		}
	}
	s := l.start()
	if got, r := once(l, guest.ReadIdentity{}, "--network", "container:"+s.name); r.code != 0 || got != want {
		t.Errorf("container: exit %d, %+v, want %+v; %s", r.code, got, want, r.stderr)
	}
	r := l.finish(l.command("rootless-net", append([]string{"exec", s.name}, program(guest.ReadIdentity{})...)...))
	if got, r := decodeOnce(l, guest.ReadIdentity{}, r); r.code != 0 || got != want {
		t.Errorf("exec: exit %d, %+v, want %+v; %s", r.code, got, want, r.stderr)
	}
	s.stop()
}

// TestOrdinaryUserInside: with the caller's own id a command has its home and its files, binds ports below 1024, can be published,
// and pings; it cannot change the network, and cannot look into init.
func TestOrdinaryUserInside(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		for _, flags := range [][]string{nil, {"--pid"}} {
			s := l.start(append([]string{"-p", "8080:80", "-p", "8053:53/udp"}, flags...)...)
			s.listenTCP(guest.Echo, 80)
			s.listenUDP(53)
			for _, f := range l.families() {
				srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
				s.wantEcho(srv)
				l.wantClientSeen(l.There, at(f.here, 8080))
				s.wantPong(f.there)
			}
			s.wantPong(gateway4)
			ran := do(s, guest.RunShell{Script: `test "$HOME" = "` + os.Getenv("HOME") + `" || exit 1
test -O "` + l.runtime + `" || exit 2
touch "` + l.runtime + `/mine" || exit 3
ip link add dummy0 type dummy 2>/dev/null && exit 4
init=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$PPID/status)
grep -q rootless-init /proc/$init/comm || exit 5
cat /proc/$init/environ >/dev/null 2>&1 && exit 6
readlink /proc/$init/fd/0 /proc/$init/ns/mnt /proc/$init/root && exit 7
cat /proc/$init/maps >/dev/null 2>&1 && exit 8
for c in CapInh CapPrm CapEff CapAmb; do grep -q "^$c:[[:space:]]*0*$" /proc/self/status || exit 9; done`})
			if ran.Code != 0 {
				t.Errorf("%v: %+v", flags, ran)
			}
			if st, err := os.Stat(l.runtime + "/mine"); err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
				t.Errorf("%v: the file of the command: %v, %v", flags, st, err)
			}
			s.stop()
		}
	})
}

// TestSignalDuringStart: a signal that comes at any moment of the start ends rootless-run with 128+n, or by the signal itself
// before the program has caught it, and nothing is printed. A terminal sends its signals to init as well.
func TestSignalDuringStart(t *testing.T) {
	var wg sync.WaitGroup
	for _, c := range []struct {
		name  string
		sig   syscall.Signal
		group bool
		flags []string
	}{
		{"SIGINT of the terminal", syscall.SIGINT, true, nil},
		{"SIGINT of the terminal, subordinate ids", syscall.SIGINT, true, []string{"--userns", "auto"}},
		{"SIGTERM", syscall.SIGTERM, false, nil},
		{"SIGTERM to the group", syscall.SIGTERM, true, []string{"--network", "none"}},
		{"SIGINT, detached", syscall.SIGINT, false, []string{"--detach"}},
	} {
		wg.Go(func() {
			t.Run(c.name, func(t *testing.T) { signalDuringStart(t, c.sig, c.group, c.flags) })
		})
	}
	wg.Wait()
}

// signalDuringStart sends the signal 0, 3, 6, … ms after the program was started, to it alone or to its process group.
func signalDuringStart(t *testing.T, sig syscall.Signal, group bool, flags []string) {
	const moments = 30
	l := newLab(t)
	l.once(nil, "true") // makes the directory of the records
	for i := range moments {
		cmd := l.command("rootless-run", append(append([]string{"--log-level", "error"}, flags...), "--", "sleep", "2")...)
		cmd.SysProcAttr.Setpgid = true
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		l.launch(cmd)
		after := time.Duration(i) * 3 * time.Millisecond
		time.Sleep(after)
		pid := cmd.Process.Pid
		if group {
			pid = -pid
		}
		_ = syscall.Kill(pid, sig)
		_ = cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		ended := status.Signaled() && status.Signal() == sig || status.ExitStatus() == 128+int(sig)
		if slices.Contains(flags, "--detach") {
			ended = ended || status.ExitStatus() == 0 // it has printed the id, and the command goes on
		}
		if !ended || stderr.Len() > 0 {
			t.Errorf("after %v: exit %d, signal %v, %q", after, status.ExitStatus(), status.Signal(), &stderr)
		}
	}
	l.nothingLeft(5 * time.Second)
}
