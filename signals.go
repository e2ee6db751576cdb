package rootlessnet

import (
	"context"
	"os"
	"slices"
	"sync"
	"syscall"

	"rootlessnet/internal/signals"
)

// early takes the signals that come while there is no command yet: one that asks a program to end cancels, the others
// are kept for the command, one of each kind as a kernel keeps them. After stop they are forwardSignals' and linger's.
func (s *sandbox) early(cancel context.CancelFunc) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case sig := <-s.cfg.Signals:
				if signals.Terminates(sig) {
					cancel()
				} else if !slices.Contains(s.kept, sig) {
					s.kept = append(s.kept, sig)
				}
			case <-quit:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
	})
}

// forwardSignals sends to the command what was kept for it and what comes.
func (s *sandbox) forwardSignals(until <-chan struct{}) {
	forward := func(sig os.Signal) {
		if n, ok := sig.(syscall.Signal); ok {
			_ = s.ns.Signal(n)
		}
	}
	for _, sig := range s.kept {
		forward(sig)
	}
	for {
		select {
		case sig := <-s.cfg.Signals:
			forward(sig)
		case <-until:
			return
		}
	}
}
