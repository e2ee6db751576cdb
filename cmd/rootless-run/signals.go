package main

import (
	"os"
	"os/signal"
	"sync/atomic"

	"rootlessnet/internal/signals"
)

// relay passes the signals that this process receives on to the sandbox, until stop. Its goroutine pass ends with stop.
type relay struct {
	forward chan os.Signal
	caught  chan os.Signal
	started atomic.Bool
	quit    chan struct{}
	done    chan struct{}
}

// catchSignals starts a relay.
func catchSignals() *relay {
	s := &relay{
		forward: make(chan os.Signal, signals.Backlog),
		caught:  make(chan os.Signal, signals.Backlog),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	signals.Catch(s.caught)
	go s.pass()
	return s
}

// catchStop has SIGTSTP relayed as well, to a receiver that acts on it.
func (s *relay) catchStop() { signals.CatchStop(s.caught) }

// commandStarted records that the command runs: from then on the relay does not pass on signals of the terminal, which the
// command receives itself.
func (s *relay) commandStarted() { s.started.Store(true) }

func (s *relay) stop() {
	signal.Stop(s.caught)
	close(s.quit)
	<-s.done
}

func (s *relay) pass() {
	defer close(s.done)
	for {
		select {
		case <-s.quit:
			return
		case sig := <-s.caught:
			if s.started.Load() && signals.FromTerminal(sig) {
				continue // the terminal sent it to the whole process group, which the command is in
			}
			select {
			case s.forward <- sig:
			case <-s.quit:
				return
			}
		}
	}
}
