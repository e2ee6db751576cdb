package listenwatch

import (
	"context"
	"errors"
	"time"
)

// ErrLater is what Open returns to be called for the same port again at the next poll.
var ErrLater = errors.New("not opened now; try again at the next poll")

// Watcher opens and closes ports of type K so that they follow what listens. Its methods must not be called concurrently; the
// functions are called by them.
type Watcher[K comparable] struct {
	// Wanted reads which ports are to be open now.
	Wanted func() map[K]bool
	// Open opens the ports that are new, all of one poll in one call, and returns the errors of those that it did not open. After
	// an error that is not ErrLater a port is not tried again before it has been missing from Wanted once.
	Open func([]K) map[K]error
	// Close closes ports that Open has opened.
	Close func([]K)
	// Missed is for how many polls in a row an open port must be missing from Wanted before it is closed; 0 means 1.
	Missed int

	open   map[K]int // for how many polls the port has been missing
	failed map[K]bool
}

// Poll reads once what is wanted, closes what has been missing for long enough, and then opens what is new.
func (w *Watcher[K]) Poll() {
	if w.open == nil {
		w.open, w.failed = map[K]int{}, map[K]bool{}
	}
	now := w.Wanted()
	var gone, added []K
	for k := range w.open {
		if now[k] {
			w.open[k] = 0
		} else if w.open[k]++; w.open[k] >= w.Missed {
			delete(w.open, k)
			gone = append(gone, k)
		}
	}
	if len(gone) > 0 {
		w.Close(gone)
	}
	for k := range w.failed {
		if !now[k] {
			delete(w.failed, k)
		}
	}
	for k := range now {
		if _, open := w.open[k]; !open && !w.failed[k] {
			added = append(added, k)
		}
	}
	if len(added) == 0 {
		return
	}
	refused := w.Open(added)
	for _, k := range added {
		switch err := refused[k]; {
		case err == nil:
			w.open[k] = 0
		case !errors.Is(err, ErrLater):
			w.failed[k] = true
		}
	}
}

// Run polls at every interval until ctx ends. The first poll is after one interval; a caller that wants one before calls Poll.
func (w *Watcher[K]) Run(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for ctx.Err() == nil {
		select {
		case <-t.C:
			w.Poll()
		case <-ctx.Done():
			return
		}
	}
}
