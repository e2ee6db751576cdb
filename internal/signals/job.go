package signals

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopPause is for the kernel to stop this process by a signal that it has sent to its own group: the other threads stop a moment
// after the call has returned. It is short because a group that cannot be stopped goes on after it.
const stopPause = 50 * time.Millisecond

// StopJob is for a launcher whose command pid was stopped by sig. If the command has a process group of its own, the shell that
// waits for the launcher has not noticed: StopJob stops the launcher's process group. It returns when that is continued, after it has
// given the terminal back to the command, if the launcher has it, and continued the command. In an orphaned process group, which
// nothing could continue (a terminal emulator has started the launcher), the kernel does not stop the group, and the command goes
// on at once. Without a terminal, or for a command in the launcher's own group, nothing is done.
func StopJob(pid int, sig syscall.Signal) {
	if pid <= 0 {
		return
	}
	group, err := unix.Getpgid(pid)
	own := unix.Getpgrp()
	if err != nil || group == own {
		return
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer tty.Close()
	foreground := func() int {
		n, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
		if err != nil {
			return 0
		}
		return n
	}
	waiting := sig == syscall.SIGTTIN || sig == syscall.SIGTTOU
	if !waiting {
		sig = syscall.SIGTSTP // not SIGSTOP, which stops an orphaned group as well
	}
	if !waiting || foreground() != own { // otherwise it waits for the terminal, which this group can give to it
		_ = syscall.Kill(0, sig)
		time.Sleep(stopPause)
	}
	if foreground() == own {
		_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, group)
	}
	_ = syscall.Kill(-group, syscall.SIGCONT)
}

// WindowChanges calls changed each time the terminal of this process has another size, until the returned function is called.
func WindowChanges(changed func()) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ch:
				changed()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(quit)
		<-done
	}
}
