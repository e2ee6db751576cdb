package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endGrace is how long a command that handles SIGTERM may take to end before it is killed; as long as docker stop waits.
const endGrace = 10 * time.Second

// commandSignals returns a channel of the signals that are for the command.
func commandSignals() chan os.Signal {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT, syscall.SIGHUP)
	return signals
}

// relaySignals passes signals on to the command until done is closed, and returns the signal by which the command was ended, if
// any. The command is process 1 of its pid namespace, so the kernel discards a signal for it that it does not handle
// (signal(7)); such a signal, which would end any other process, has the command killed, and the kernel kills the other processes
// of the namespace with it. So has SIGTERM if the command ignores it: the original program ends at once.
// executed reports whether the process is the command already, and not the program that becomes it.
func relaySignals(command *os.Process, executed func() bool, signals <-chan os.Signal, done <-chan struct{}) (ended syscall.Signal) {
	var late <-chan time.Time
	kill := func(s syscall.Signal) {
		ended = s
		_ = command.Kill()
	}
	for {
		select {
		case s := <-signals:
			s1 := s.(syscall.Signal)
			switch d := dispositionOf(command.Pid, s1); {
			case !executed() || d == discards || d == ignores && s1 == syscall.SIGTERM:
				kill(s1)
			case s1 == syscall.SIGINT || s1 == syscall.SIGQUIT:
				// The terminal sends these to the whole foreground process group, so the command has received them itself.
			default:
				_ = command.Signal(s1)
				if s1 == syscall.SIGTERM && late == nil {
					late = time.After(endGrace)
				}
			}
		case <-late:
			kill(syscall.SIGTERM)
		case <-done:
			return ended
		}
	}
}

// disposition is what becomes of a signal for process 1 of a pid namespace.
type disposition int

const (
	discards disposition = iota // the default action, which the kernel does not take for this process
	handles                     // by a handler, or by sigwait(3) or a signalfd(2) while it is blocked
	ignores                     // by its own choice
)

// dispositionOf reads what a process does with a signal from /proc/PID/status (proc_pid_status(5)).
func dispositionOf(pid int, s syscall.Signal) disposition {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return handles // it has ended
	}
	return parseDisposition(text, s)
}

func parseDisposition(status []byte, s syscall.Signal) disposition {
	found := discards
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || mask&(1<<(s-1)) == 0 {
			continue
		}
		switch name {
		case "SigCgt", "SigBlk":
			found = handles
		case "SigIgn":
			if found == discards {
				found = ignores
			}
		}
	}
	return found
}

// exitStatus is the exit status of a command as a shell reports it. ended is the signal because of which it was killed, if any.
func exitStatus(state *os.ProcessState, ended syscall.Signal) int {
	ws := state.Sys().(syscall.WaitStatus)
	switch {
	case !ws.Signaled():
		return state.ExitCode()
	case ended != 0 && ws.Signal() == unix.SIGKILL:
		return exitSignalBase + int(ended)
	}
	return exitSignalBase + int(ws.Signal())
}
