package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
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
			t.Fatal("the daemon does not run")
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

func TestUserNamespaces(t *testing.T) {
	l := newLab(t)
	const capNetAdmin = 1 << unix.CAP_NET_ADMIN
	if got, r := once(l, guest.ReadIdentity{}, "--userns", "root"); r.code != 0 || got.UID != 0 || got.GID != 0 || got.Capabilities>>40 != 1 || got.Capabilities&capNetAdmin == 0 {
		t.Errorf("root: exit %d, %+v; %s", r.code, got, r.stderr)
	}
	want := guest.Identity{UID: os.Getuid(), GID: os.Getgid()}
	if got, r := once(l, guest.ReadIdentity{}, "--userns", "keep-id"); r.code != 0 || got != want {
		t.Errorf("keep-id: exit %d, %+v, want %+v; %s", r.code, got, want, r.stderr)
	}
}
