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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/skip"
)

// uniqueSleep is a number of seconds that no other process sleeps, by which a test finds processes that are left.
func uniqueSleep() string { return fmt.Sprintf("100%d.%d", os.Getpid(), time.Now().UnixNano()%1e9) }

// sleepers counts processes with mark in their command line.
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

// daemons is a script that leaves descendants: in the background, in another session, and orphaned in another session.
func daemons(mark string) string {
	return strings.ReplaceAll("sleep M & setsid sleep M & (setsid sh -c 'sleep M & sleep M' &) ;", "M", mark)
}

// TestShortCommands: commands that end before the answer to Run is read.
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

// TestInitKilled: when init is killed, which the command may do as the same user, the command is killed too and Wait returns an
// error.
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

// supervisor starts the test binary as a supervisor in its own process group, with an inherited descriptor.
func supervisor(t *testing.T, script string, env ...string) (cmd *exec.Cmd, initPID int, out io.Reader) {
	t.Helper()
	start(t, Config{Network: NetworkNone}).Close() // skips where there are no user namespaces
	cmd = exec.Command(selfExe)
	cmd.Env = append(append(os.Environ(), supervisorEnv+"="+script), env...)
	runtime.LockOSThread() // until the test ends: the parent-death signal follows the thread
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	inherited, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	cmd.ExtraFiles = []*os.File{inherited}
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
			if stopped { // Ctrl-Z, then the terminal is closed
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

// TestTerminalSignals: Ctrl-C goes to the whole process group. The command may end; init stays and reports its exit code.
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

// TestConfined: a confined supervisor has no_new_privs and no capability and is not dumpable; its sandbox can still be entered.
func TestConfined(t *testing.T) {
	mark := uniqueSleep()
	cmd, initPID, out := supervisor(t, "echo; sleep "+mark)
	out.Read(make([]byte, 1)) // confined before the command started
	if _, _, e := syscall.AllThreadsSyscall(syscall.SYS_GETPID, 0, 0, 0); e == syscall.ENOTSUP && os.Getuid() == 0 {
		skip.Missing(t, "an ordinary user, or CGO_ENABLED=0")
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
