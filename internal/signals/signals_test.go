package signals

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
)

// TestMain: with SIGNALS_TEST_CHILD set, the test binary is a launcher that prints each signal it receives and the result of
// FromTerminal.
func TestMain(m *testing.M) {
	if os.Getenv("SIGNALS_TEST_CHILD") != "" {
		ch := make(chan os.Signal, Backlog)
		Catch(ch)
		fmt.Println("ready")
		for sig := range ch {
			fmt.Println(unix.SignalName(sig.(syscall.Signal)), FromTerminal(sig))
		}
	}
	os.Exit(m.Run())
}

// child starts the launcher in a session of its own. tty, if not nil, is its controlling terminal and standard input. next
// returns the next line it prints.
func child(t *testing.T, tty *os.File) (*exec.Cmd, func() string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SIGNALS_TEST_CHILD=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if tty != nil {
		cmd.Stdin, cmd.SysProcAttr.Setctty = tty, true
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(out)
	next := func() string {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(line, err)
		}
		return strings.TrimSpace(line)
	}
	if line := next(); line != "ready" {
		t.Fatal(line)
	}
	return cmd, next
}

func TestWithoutTerminal(t *testing.T) {
	cmd, next := child(t, nil)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGWINCH, syscall.SIGUSR1} {
		cmd.Process.Signal(sig)
		if got, want := next(), unix.SignalName(sig)+" false"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestOnTerminal sends Ctrl-C and Ctrl-\ through a pseudo terminal.
func TestOnTerminal(t *testing.T) {
	master, tty := openPTY(t)
	cmd, next := child(t, tty)
	for _, c := range []struct{ key, want string }{{"\x03", "SIGINT true"}, {"\x1c", "SIGQUIT true"}} {
		if _, err := master.WriteString(c.key); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if got := next(); got != "SIGTERM false" {
		t.Error(got)
	}
}

func openPTY(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skip.Missing(t, "no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		skip.Missing(t, "no pseudo terminals: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skip.Missing(t, "no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { tty.Close() })
	return master, tty
}

// TestIgnoredStaysIgnored: as needed under nohup.
func TestIgnoredStaysIgnored(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	cmd, next := child(t, nil)
	cmd.Process.Signal(syscall.SIGHUP)
	cmd.Process.Signal(syscall.SIGUSR1)
	if got := next(); got != "SIGUSR1 false" {
		t.Error(got)
	}
}

func TestTerminates(t *testing.T) {
	if !Terminates(syscall.SIGTERM) || Terminates(syscall.SIGUSR1) || Terminates(syscall.SIGWINCH) {
		t.Error("SIGTERM requests a program to end, SIGUSR1 and SIGWINCH do not")
	}
}
