package main

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"rootlessnet/internal/signals"
)

// relay passes on what this process is sent, until stopped.
type relay struct {
	forward chan os.Signal
	caught  chan os.Signal
	started chan struct{}
	begin   sync.Once
	quit    chan struct{}
	done    chan struct{}
}

// catchSignals begins to catch. Until commandStarted, a signal that ends a program calls cancel.
func catchSignals(cancel context.CancelFunc) *relay {
	s := &relay{
		forward: make(chan os.Signal, signals.Backlog),
		caught:  make(chan os.Signal, signals.Backlog),
		started: make(chan struct{}),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	signals.Catch(s.caught)
	go s.pass(cancel)
	return s
}

func (s *relay) commandStarted() { s.begin.Do(func() { close(s.started) }) }

func (s *relay) stop() {
	signal.Stop(s.caught)
	close(s.quit)
	<-s.done
}

func (s *relay) pass(cancel context.CancelFunc) {
	defer close(s.done)
	for {
		select {
		case <-s.quit:
			return
		case sig := <-s.caught:
			select {
			case <-s.started:
			default:
				if signals.Ends(sig) {
					cancel()
				}
				continue
			}
			if signals.FromTerminal(sig) {
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
