package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// launcher is the process of ours that the shell on the terminal waits for.
func (c *console) launcher() (pid int) {
	c.Helper()
	shell := c.cmd.Process.Pid
	eventually(c.T, terminalPatience, func() string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shell, shell))
		if err != nil {
			return err.Error()
		}
		words := strings.Fields(string(text))
		if len(words) != 1 {
			return fmt.Sprintf("the shell has the children %v", words)
		}
		pid, err = strconv.Atoi(words[0])
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return pid
}

// signal sends a signal to the launcher alone.
func (c *console) signal(sig syscall.Signal) {
	c.Helper()
	if err := syscall.Kill(c.launcher(), sig); err != nil {
		c.Fatal(err)
	}
}

// inside makes the prompt of the shell inside, which inherits that of the shell outside, another one.
func (c *console) inside() {
	c.Helper()
	c.await("outer$ ")
	c.keys("PS1='in''side$ '\n")
	c.await("inside$ ")
}

// answers expects that the shell that has the terminal has this prompt, and executes what is typed once.
func (c *console) answers(prompt string) {
	c.Helper()
	c.keys("echo here-$((40+2))\n")
	c.await("here-42\r\n" + prompt)
}

// interrupts expects that Ctrl-C ends what the shell inside runs.
func (c *console) interrupts() {
	c.Helper()
	c.keys("sh -c 'echo run\"\"s; exec sleep 60'\n") // it has the terminal when it prints
	c.await("runs")
	c.keys("\x03")
	c.await("inside$ ")
}

// TestJobControl: whatever stops a launcher or what it has started, the terminal stays with a shell that can use it, and fg brings
// the one inside back. SIGTSTP to the launcher alone is the command's, which a shell ignores, with a terminal of its own or without; a
// command in the launcher's job goes on without it, as it would below a shell script. A shell inside that was suspended waits for fg: bg
// does not let it take the terminal from the shell outside.
func TestJobControl(t *testing.T) {
	const inner = " bash --norc --noprofile -i"
	for _, c := range []struct {
		name, start string
		test        func(c *console)
	}{
		{"stop of run", "rootless-run" + inner, ignoresStop},
		{"stop of exec", "rootless-net exec -i other" + inner, ignoresStop},
		{"stop of run -t", "rootless-run -it" + inner, ignoresStop},
		{"stop of exec -t", "rootless-net exec -it other" + inner, ignoresStop},
		{"stop of a job", `rootless-run sh -c 'trap "exit 3" INT; trap "echo goe\"\"s" CONT; echo run""s; while :; do sleep .1; done'`, stopsAsJob},
		{"stop of a job of exec", `rootless-net exec -i other sh -c 'trap "exit 3" INT; trap "echo goe\"\"s" CONT; echo run""s; while :; do sleep .1; done'`, stopsAsJob},
		{"SIGSTOP with a terminal", "rootless-run -it" + inner, func(c *console) {
			c.inside()
			c.signal(syscall.SIGSTOP)
			c.await("Stopped")
			c.await("outer$ ")
			c.answers("outer$ ")
			c.keys("fg\n")
			c.await("rootless-run -it" + inner)
			c.keys("\n")
			c.await("inside$ ")
			c.answers("inside$ ")
			c.interrupts()
		}},
		{"bg of run", "rootless-run" + inner, waitsForForeground},
		{"bg of exec", "rootless-net exec -i other" + inner, waitsForForeground},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			if strings.Contains(c.start, " other ") {
				l.other()
			}
			term := l.shellOnTerminal()
			term.keys(c.start + "\n")
			c.test(term)
		})
	}
}

func ignoresStop(c *console) {
	c.inside()
	c.signal(syscall.SIGTSTP)
	c.answers("inside$ ")
	c.keys("sh -c 'echo run\"\"s; exec sleep 60'\n") // it has the terminal when it prints
	c.await("runs")
	c.signal(syscall.SIGTSTP)
	c.keys("\x03")
	c.await("inside$ ")
	c.interrupts()
}

func stopsAsJob(c *console) {
	c.await("runs")
	c.signal(syscall.SIGTSTP)
	c.await("Stopped")
	c.await("outer$ ")
	c.answers("outer$ ")
	c.keys("fg\n")
	c.await("goes")
	c.keys("\x03")
	c.await("outer$ ")
	c.keys("echo code-$?\n")
	c.await("code-3")
}

func waitsForForeground(c *console) {
	c.inside()
	c.keys("suspend\n")
	c.await("Stopped")
	c.await("outer$ ")
	c.keys("bg\n")
	c.await("outer$ ")
	for end := time.Now().Add(terminalPatience); ; time.Sleep(50 * time.Millisecond) { // stopped again
		c.keys("echo now-$(jobs -s)-\n")
		c.await("now-")
		c.await("now-") // the first was the echo of the keys
		if strings.HasPrefix(c.out.String()[c.read:], "[1]+ Stopped") {
			break
		}
		if time.Now().After(end) {
			c.Fatal("the shell inside goes on in the background")
		}
	}
	c.await("outer$ ")
	c.answers("outer$ ")
	c.keys("fg\n")
	c.await("inside$ ")
	c.answers("inside$ ")
	c.interrupts()
}
