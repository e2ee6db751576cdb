package sandbox

import (
	"errors"
	"sync"

	"rootlessnet/api"
)

// leases counts the sandboxes that have joined the network of this one. The zero value is ready. Safe for concurrent use.
type leases struct {
	mu      sync.Mutex
	members int           // leases that keep the network; guarded by mu
	ending  bool          // no more leases are given; guarded by mu
	idle    chan struct{} // closed when members becomes 0 after drain; guarded by mu; nil otherwise
}

// take gives a lease: of a member, which keeps the network, or of a process that only needs notice of the network's end
// (exec). It is an *api.Error after the end.
func (l *leases) take(kind api.LeaseKind) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending {
		return nil, api.Conflict(errors.New("the sandbox has ended"))
	}
	if kind == api.LeaseExec {
		return func() {}, nil
	}
	l.members++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.members--
		if l.members == 0 && l.idle != nil {
			l.ending = true
			close(l.idle)
			l.idle = nil
		}
	}), nil
}

// count is the number of members.
func (l *leases) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.members
}

// drain is called when the command has ended. With no members left it refuses further leases and returns 0; otherwise it
// returns their number and a channel that is closed when the last one has ended.
func (l *leases) drain() (idle <-chan struct{}, members int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.members == 0 {
		l.ending = true
		return nil, 0
	}
	l.idle = make(chan struct{})
	return l.idle, l.members
}

// close refuses further leases.
func (l *leases) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = true
}
