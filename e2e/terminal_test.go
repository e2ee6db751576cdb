package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/nettest/topo"
)

// terminalPatience bounds the wait for what a terminal shows: nothing here takes longer than the start of a sandbox.
const terminalPatience = 20 * time.Second

// console is a pseudo terminal with a program on it, as a terminal emulator has it.
type console struct {
	*testing.T
	master *os.File
	cmd    *topo.Cmd
	out    *buffer
	read   int // bytes of out that await has passed
}

// onTerminal starts cmd as the leader of a session on a terminal of its own.
func (l *lab) onTerminal(cmd *topo.Cmd, size unix.Winsize) *console {
	l.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skip.Missing(l, "no pseudo terminals: %v", err)
	}
	l.Cleanup(func() { master.Close() })
	c := &console{T: l.T, master: master, cmd: cmd, out: &buffer{}}
	number := 0
	c.control(func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
		return err
	})
	c.resize(size)
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skip.Missing(l, "no pseudo terminals: %v", err)
	}
	defer tty.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	l.launch(cmd)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = c.out.Write(buf[:n])
			if err != nil {
				return // no process has the terminal any more
			}
		}
	}()
	return c
}

func (c *console) control(f func(fd int) error) {
	c.Helper()
	conn, err := c.master.SyscallConn()
	if err == nil {
		if cerr := conn.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		c.Fatal(err)
	}
}

// resize is what a terminal emulator does when its window changes.
func (c *console) resize(size unix.Winsize) {
	c.Helper()
	c.control(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size) })
}

// keys types text.
func (c *console) keys(text string) {
	c.Helper()
	if _, err := c.master.WriteString(text); err != nil {
		c.Fatal(err)
	}
}

// await waits until the terminal shows text, after what was awaited before.
func (c *console) await(text string) {
	c.Helper()
	for end := time.Now().Add(terminalPatience); ; time.Sleep(10 * time.Millisecond) {
		all := c.out.String()
		if i := strings.Index(all[c.read:], text); i >= 0 {
			c.read += i + len(text)
			return
		}
		if time.Now().After(end) {
			c.Fatalf("the terminal does not show %q; it shows, after what was awaited before:\n%q", text, all[c.read:])
		}
	}
}

// wantExit waits for the program's end.
func (c *console) wantExit(code int) {
	c.Helper()
	ended := make(chan error, 1)
	go func() { ended <- c.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(terminalPatience):
		c.Fatalf("the program does not end; the terminal shows %q", c.out.String()[c.read:])
	}
	if got := c.cmd.ProcessState.ExitCode(); got != code {
		c.Errorf("exit %d, want %d; the terminal shows %q", got, code, c.out.String())
	}
}

// TestTerminalOfItsOwn: with -t the command of run and of exec leads a session on another terminal, which has the window's size and its
// changes, and whose keys it gets; the caller's terminal is as it was afterwards.
func TestTerminalOfItsOwn(t *testing.T) {
	for _, words := range []string{"rootless-run -it", "rootless-net exec -it other"} {
		t.Run(words, func(t *testing.T) { newLab(t).terminalOfItsOwn(strings.Fields(words)) })
	}
}

// other starts a sandbox of this name in the background.
func (l *lab) other() {
	l.Helper()
	if r := l.once([]string{"-d", "--network", "none", "--name", "other"}, "sleep", "1000"); r.code != 0 {
		l.Fatalf("%+v", r)
	}
	l.Cleanup(func() { l.manage("kill", "other") })
}

func (l *lab) terminalOfItsOwn(words []string) {
	if words[1] == "exec" {
		l.other()
	}
	cmd := l.command(words[0], append(words[1:], "sh", "-c", `trap 'stty size' WINCH; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three; `+
		`[ "$(ps -o sid= -p $$)" -eq $$ ] && echo leads; read line; echo "got $line"; while read line; do echo "again $line"; done; echo end; exec sleep 60`)...)
	c := l.onTerminal(cmd, unix.Winsize{Row: 33, Col: 101})
	c.await("33 101")
	c.await("three")
	c.await("leads")
	c.keys("word\n")
	c.await("got word")
	c.resize(unix.Winsize{Row: 44, Col: 99})
	c.keys("more\n") // sh runs the trap when read returns
	c.await("44 99")
	c.keys("\x04")
	c.await("end")
	c.keys("\x03")
	c.wantExit(130)
	var modes *unix.Termios
	c.control(func(fd int) (err error) {
		modes, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	if modes.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != unix.ICANON|unix.ECHO|unix.ISIG {
		l.Errorf("the terminal is left in mode %#x", modes.Lflag)
	}
}

// TestTerminalWithoutOne: -t gives a terminal also where the caller has none, and -d logs what the command prints there.
func TestTerminalWithoutOne(t *testing.T) {
	l := newLab(t)
	r := l.once([]string{"-t"}, "sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo both; exit 7")
	if r.code != 7 || r.stdout != "both\r\n" {
		t.Errorf("%+v", r)
	}
	cmd := l.command("rootless-run", "-it", "true")
	cmd.Stdin = strings.NewReader("")
	if r := l.finish(cmd); r.code != 125 || r.stderr != "rootless-run: the input device is not a TTY\n" {
		t.Errorf("-it without a terminal: %+v", r)
	}
	// A shell whose input stays open does not end by itself.
	for _, flags := range [][]string{{"-dit", "--name", "kept"}, {"-di", "--name", "piped"}} {
		if r := l.once(flags, "sh", "-c", "echo begins; cat"); r.code != 0 || len(r.stdout) != 65 {
			t.Fatalf("%v: %+v", flags, r)
		}
		time.Sleep(200 * time.Millisecond)
		if ps := l.manage("ps"); !strings.Contains(ps, flags[2]) {
			t.Errorf("%v has ended: %s", flags, ps)
		}
		l.manage("stop", flags[2])
	}
}

// TestExecStreams: the command of exec has the caller's standard input with -i only, and a terminal with -t only, as with docker exec.
func TestExecStreams(t *testing.T) {
	l := newLab(t)
	l.other()
	const show = `for n in 0 1 2; do [ -t $n ] && echo tty; done; cat; exit 7`
	for _, c := range []struct {
		flags, stdout, stderr string
		code                  int
	}{
		{"", "", "", 7},
		{"-i", "typed\n", "", 7},
		{"-t", "tty\r\ntty\r\ntty\r\n", "", 7},
		{"-it", "", "rootless-net: the input device is not a TTY\n", 1},
	} {
		script := show
		if c.flags == "-t" {
			script = strings.Replace(show, "cat; ", "", 1) // nobody types, and nobody ends the input
		}
		cmd := l.command("rootless-net", append(append([]string{"exec"}, strings.Fields(c.flags)...), "other", "sh", "-c", script)...)
		cmd.Stdin = strings.NewReader("typed\n")
		if r := l.finish(cmd); r.code != c.code || r.stdout != c.stdout || r.stderr != c.stderr {
			t.Errorf("%q: %+v", c.flags, r)
		}
	}
	// In the background the terminal is one that nobody reads.
	mark := filepath.Join(t.TempDir(), "mark")
	l.manage("exec", "-dt", "other", "sh", "-c", "seq 10000; tty > "+mark)
	eventually(t, 5*time.Second, func() string {
		if text, _ := os.ReadFile(mark); !strings.HasPrefix(string(text), "/dev/pts/") {
			return fmt.Sprintf("%q", text)
		}
		return ""
	})
	// At a prompt a shell without -i ends at once, and Ctrl-C ends a command that has a terminal without -i.
	c := l.shellOnTerminal()
	c.keys("rootless-net exec other sh; echo code-$?\n")
	c.await("code-0")
	c.keys("rootless-net exec -t other sh -c 'echo run''s; exec sleep 60'; echo code-$?\n")
	c.await("runs")
	c.keys("\x03")
	c.await("code-130")
	c.keys("exit\n")
	c.wantExit(0)
}

// shellOnTerminal starts an interactive bash on a terminal, with rootless-run in its PATH.
func (l *lab) shellOnTerminal() *console {
	l.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		skip.Missing(l, "%v", err)
	}
	cmd := l.Here.Command(bash, "--norc", "--noprofile", "-i")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+l.runtime, "PATH="+bins+":"+os.Getenv("PATH"), "PS1=outer$ ", "TERM=dumb")
	c := l.onTerminal(cmd, unix.Winsize{Row: 24, Col: 200})
	c.await("outer$ ")
	return c
}

// TestSuspend: the suspend of a shell inside gives the terminal back to the shell outside, and fg gives it to the shell inside, more
// than once; so it is for a command of rootless-net exec, for a pid namespace, and for Ctrl-Z where the command shares the job.
func TestSuspend(t *testing.T) {
	const inner = "bash --norc --noprofile -i"
	for _, c := range []struct{ name, start, prepare string }{
		{name: "run", start: "rootless-run " + inner},
		{name: "pid", start: "rootless-run --pid " + inner},
		{name: "host", start: "rootless-run --network host " + inner},
		{name: "exec", start: "rootless-net exec -i other " + inner, prepare: "rootless-run -d --name other sleep 60"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			if c.prepare != "" {
				words := strings.Fields(c.prepare)
				if r := l.finish(l.command(words[0], words[1:]...)); r.code != 0 {
					t.Fatalf("%+v", r)
				}
				defer l.manage("stop", "other")
			}
			term := l.shellOnTerminal()
			term.keys(c.start + "\n")
			term.await("outer$ ") // the prompt of the shell inside, which inherits it
			for range 2 {
				term.keys("PS1='in''side$ '\n")
				term.await("inside$ ")
				term.keys("suspend\n")
				term.await("Stopped")
				term.await("outer$ ")
				term.keys("echo back-$((40+2))\n")
				term.await("back-42")
				term.await("outer$ ")
				term.keys("fg\n")
				term.await("inside$ ")
				term.keys("echo again-$((40+3))\n")
				term.await("again-43")
				term.await("inside$ ")
			}
			term.keys("sleep 50\n")
			time.Sleep(200 * time.Millisecond)
			term.keys("\x1a") // stops the sleep; the shell inside goes on
			term.await("Stopped")
			term.await("inside$ ")
			term.keys("kill -KILL %1; sleep 0.2\n")
			term.await("inside$ ")
			term.keys("exit 9\n")
			term.await("outer$ ")
			term.keys("echo code-$?; exit\n")
			term.await("code-9")
			term.wantExit(0)
		})
	}
	t.Run("ctrl-z", func(t *testing.T) {
		term := newLab(t).shellOnTerminal()
		term.keys("rootless-run sh -c 'echo run''s; sleep 1; echo en''ds'\n")
		term.await("runs")
		term.keys("\x1a")
		term.await("Stopped")
		term.await("outer$ ")
		term.keys("fg\n")
		term.await("ends")
		term.await("outer$ ")
		term.keys("exit\n")
		term.wantExit(0)
	})
	// A terminal emulator that starts rootless-run itself: nothing could continue the job, so it is not stopped.
	t.Run("no shell outside", func(t *testing.T) {
		l := newLab(t)
		bash, err := exec.LookPath("bash")
		if err != nil {
			skip.Missing(t, "%v", err)
		}
		cmd := l.command("rootless-run", bash, "--norc", "--noprofile", "-i")
		cmd.Env = append(cmd.Env, "PS1=inside$ ", "TERM=dumb")
		term := l.onTerminal(cmd, unix.Winsize{Row: 24, Col: 200})
		term.await("inside$ ")
		term.keys("suspend\n")
		term.keys("echo on-$((40+2)); exit 5\n")
		term.await("on-42")
		term.wantExit(5)
	})
}

// TestStoppedInItsTerminal: in the terminal of -t nothing can continue a shell that stops itself, so it goes on.
func TestStoppedInItsTerminal(t *testing.T) {
	l := newLab(t)
	cmd := l.command("rootless-run", "-t", "sh", "-c", "echo begins; kill -STOP $$; echo on-$((40+2)); exit 5")
	c := l.onTerminal(cmd, unix.Winsize{Row: 24, Col: 80})
	c.await("begins")
	c.await("on-42")
	c.wantExit(5)
}

// TestStoppedCommandWithoutTerminal: without a terminal a stop of the command does not concern its supervisor.
func TestStoppedCommandWithoutTerminal(t *testing.T) {
	l := newLab(t)
	out := &buffer{}
	cmd := l.command("rootless-run", "sh", "-c", "echo $$; kill -STOP $$; exit 6")
	cmd.Stdout = out
	cmd.SysProcAttr.Setsid = true
	l.launch(cmd)
	pid := 0
	eventually(t, terminalPatience, func() string {
		if _, err := fmt.Sscan(out.String(), &pid); err != nil {
			return "the command does not run"
		}
		return ""
	})
	time.Sleep(300 * time.Millisecond)
	if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(text), ") T ") {
		t.Errorf("the command is not stopped: %s", text)
	}
	if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid)); strings.Contains(string(text), ") T ") {
		t.Errorf("the supervisor is stopped: %s", text)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 6 {
		t.Errorf("exit %d", code)
	}
}
