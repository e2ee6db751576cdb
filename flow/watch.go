package flow

import (
	"slices"
	"sync/atomic"
)

// EventKind is what has happened to a flow.
type EventKind uint8

const (
	// Started: both ends of the flow are open.
	Started EventKind = iota
	// Finished: the flow has ended; Info has its final counters.
	Finished
)

// Event reports a change of the table.
type Event struct {
	Kind EventKind
	Info Info
}

// Watcher receives the events of a Table, in order.
type Watcher struct {
	t    *Table
	c    chan Event
	lost atomic.Uint64
}

// Watch reports every flow that starts or ends from now on. The watcher's buffer holds buffer events, at least one; an
// event that does not fit is lost and counted, so a slow reader delays no datapath. Close ends the watch.
func (t *Table) Watch(buffer int) *Watcher {
	w := &Watcher{t: t, c: make(chan Event, max(1, buffer))}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers = append(t.watchers, w)
	return w
}

// C receives the events. It is closed by Close.
func (w *Watcher) C() <-chan Event { return w.c }

// Lost is how many events did not fit into the buffer.
func (w *Watcher) Lost() uint64 { return w.lost.Load() }

// Close ends the watch. It may be called more than once.
func (w *Watcher) Close() {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	if i := slices.Index(w.t.watchers, w); i >= 0 {
		w.t.watchers = slices.Delete(w.t.watchers, i, i+1)
		close(w.c)
	}
}

// notify sends e to every watcher. mu is held, so the order of events is that of the changes.
func (t *Table) notify(e Event) {
	for _, w := range t.watchers {
		select {
		case w.c <- e:
		default:
			w.lost.Add(1)
		}
	}
}
