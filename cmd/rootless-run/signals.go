package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that are passed to the command. SIGTSTP and its like keep their meaning, so that Ctrl-Z
// stops the whole job.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH,
}

// ending are those that end the program while the command has not started yet.
var ending = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

// signals passes on what this process is sent, until stopped.
type signals struct {
	forward chan os.Signal
	caught  chan os.Signal
	started chan struct{}
	begin   sync.Once
	quit    chan struct{}
	done    chan struct{}
}

// backlog holds a burst of signals while the command is being started; a kernel keeps but one of each kind pending.
const backlog = 16

// catchSignals begins to catch. Until commandStarted, a signal that ends a program calls cancel.
func catchSignals(cancel context.CancelFunc) *signals {
	s := &signals{
		forward: make(chan os.Signal, backlog),
		caught:  make(chan os.Signal, backlog),
		started: make(chan struct{}),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	for _, sig := range forwarded {
		// nohup, and a shell without job control, have started us with a signal ignored for a reason.
		if !signal.Ignored(sig) {
			signal.Notify(s.caught, sig)
		}
	}
	go s.pass(cancel)
	return s
}

func (s *signals) commandStarted() { s.begin.Do(func() { close(s.started) }) }

func (s *signals) stop() {
	signal.Stop(s.caught)
	close(s.quit)
	<-s.done
}

func (s *signals) pass(cancel context.CancelFunc) {
	defer close(s.done)
	for {
		select {
		case <-s.quit:
			return
		case sig := <-s.caught:
			select {
			case <-s.started:
			default:
				if slices.Contains(ending, sig) {
					cancel()
				}
				continue
			}
			if fromTerminal(sig) {
				continue
			}
			select {
			case s.forward <- sig:
			case <-s.quit:
				return
			}
		}
	}
}

// fromTerminal guesses whether the terminal sent the signal, to the command too: those it sends to the process group
// in its foreground. Passing them on would make two of one. A process that sends such a signal to us alone while we are in
// the foreground is not told apart.
func fromTerminal(sig os.Signal) bool {
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
