package signals

import (
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that Catch catches. Stop signals keep their default action, so that Ctrl-Z stops the whole job.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH,
}

// Backlog is the capacity that the channel for Catch should have: for a burst of signals while one is being passed on. The
// kernel keeps at most one of each kind pending.
const Backlog = 16

// Catch delivers the signals of forwarded to ch until signal.Stop. Signals that were ignored when this process was started stay
// ignored, as nohup and shells without job control intend.
func Catch(ch chan<- os.Signal) {
	for _, sig := range forwarded {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
}

// CatchStop delivers SIGTSTP as well, which the receiver must pass on to a command with a process group or a terminal of its own, and
// obey by StopSelf otherwise. A shell inside does not stop by SIGTSTP; if its launcher did, the shell outside
// would take the terminal from it.
func CatchStop(ch chan<- os.Signal) {
	if !signal.Ignored(syscall.SIGTSTP) {
		signal.Notify(ch, syscall.SIGTSTP)
	}
}

// Terminates reports whether sig is a signal that requests a program to end.
func Terminates(sig os.Signal) bool {
	return slices.Contains([]os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}, sig)
}

// FromTerminal reports whether the terminal has probably sent the caught signal sig, in which case the command has received it
// too. See Limits in the package comment.
func FromTerminal(sig os.Signal) bool {
	if sig != syscall.SIGINT && sig != syscall.SIGQUIT && sig != syscall.SIGWINCH {
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}
