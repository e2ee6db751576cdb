package main

import (
	"os"
	"os/signal"
	"sync/atomic"

	"rootlessnet/internal/signals"
)

// relay passes on what this process is sent, until stopped.
type relay struct {
	forward chan os.Signal
	caught  chan os.Signal
	started atomic.Bool
	quit    chan struct{}
	done    chan struct{}
}

// catchSignals begins to catch.
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
				continue // the command has got it already
			}
			select {
			case s.forward <- sig:
			case <-s.quit:
				return
			}
		}
	}
}
