package signals

import (
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stopPause is for the kernel to stop this process by a signal that it has sent to itself or its own group: the other threads stop a
// moment after the call has returned. contPause is for the Go runtime to deliver SIGCONT afterwards, also on a busy machine. They are
// short because a process that cannot be stopped goes on after both.
const (
	stopPause = 50 * time.Millisecond
	contPause = 200 * time.Millisecond
)

// stopping calls send, which sends this process a signal that stops it; SIGTSTP is obeyed even if it is caught. It returns when the
// process was continued, or could not be stopped: in an orphaned process group, which nothing could continue (a terminal emulator has
// started this process), the kernel ignores what a terminal stops its jobs with. SIGCONT shows which it was.
func stopping(send func()) (continued bool) {
	cont := make(chan os.Signal, 1)
	signal.Notify(cont, syscall.SIGCONT)
	defer signal.Stop(cont)
	defer defaultAction(syscall.SIGTSTP)()
	send()
	time.Sleep(stopPause)
	select {
	case <-cont:
		return true
	case <-time.After(contPause):
		return false
	}
}

// defaultAction gives a signal its default action and returns the function that restores what was there. Once a program has asked for a
// signal, os/signal does not give it back (signal.Reset leaves the Go runtime's handler, which ignores SIGTSTP).
func defaultAction(sig syscall.Signal) (restore func()) {
	// struct sigaction of the kernel has up to 32 bytes; zeros are SIG_DFL. maskSize is the size of its sigset_t.
	const maskSize = 8
	var none, old [8]uint64
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&none)), uintptr(unsafe.Pointer(&old)), maskSize, 0, 0); errno != 0 {
		return func() {}
	}
	return func() {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&old)), 0, maskSize, 0, 0)
	}
}

// StopSelf stops this process, as SIGTSTP does that is not caught. It returns when the process was continued.
func StopSelf() {
	stopping(func() { _ = syscall.Kill(os.Getpid(), syscall.SIGTSTP) })
}

// SharesGroup reports whether the command pid is in the process group of its launcher, so that a terminal stops and continues both.
func SharesGroup(pid int) bool {
	group, err := unix.Getpgid(pid)
	return err == nil && group == unix.Getpgrp()
}

// StopJob is for a launcher whose command pid was stopped by sig. If the command has a process group of its own, the shell that
// waits for the launcher has not noticed: StopJob stops the launcher's process group. It returns when that is continued, after it has
// given the terminal back to the command and continued it. A job that was in the foreground is not continued in the background (bg): the
// command, a shell, would take the terminal from the shell outside. As if it had read from the terminal there, the group is stopped again.
// In an orphaned process group the command goes on at once. Without a terminal, or for a command in the launcher's own group, nothing
// is done.
func StopJob(pid int, sig syscall.Signal) {
	if pid <= 0 || SharesGroup(pid) {
		return
	}
	group, err := unix.Getpgid(pid)
	own := unix.Getpgrp()
	if err != nil {
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
	inForeground := foreground() == own || foreground() == group
	waiting := sig == syscall.SIGTTIN || sig == syscall.SIGTTOU
	if !waiting {
		sig = syscall.SIGTSTP // not SIGSTOP, which stops an orphaned group as well
	}
	if !waiting || foreground() != own { // otherwise it waits for the terminal, which this group can give to it
		for stopping(func() { _ = syscall.Kill(0, sig) }) && (inForeground || waiting) && foreground() != own {
			sig = syscall.SIGTTIN
		}
	}
	if foreground() == own {
		_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, group)
	}
	_ = syscall.Kill(-group, syscall.SIGCONT)
}

// TerminalChanges calls changed each time the terminal of this process may have another size or mode, because it was resized or this
// process was stopped meanwhile, until the returned function is called.
func TerminalChanges(changed func()) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH, syscall.SIGCONT)
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
