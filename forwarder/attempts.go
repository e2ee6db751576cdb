package forwarder

import (
	"net/netip"

	"rootlessnet/internal/lockrank"
)

const (
	// MaxAttempts bounds the connection attempts under way in each direction; it equals the limit of package stack.
	MaxAttempts = 8192
	// minShare is the number of attempts that one destination may always have under way.
	minShare = 64
)

// Attempts bounds the outbound connection attempts under way. A destination may hold half of what is free, so that each
// destination that does not answer leaves as much again for every other destination. Safe for concurrent use.
type Attempts struct {
	most int

	mu     lockrank.Mutex
	byDest map[netip.Addr]int // guarded by mu
	n      int                // guarded by mu
}

func newAttempts(most int) *Attempts {
	a := &Attempts{most: max(1, most), byDest: map[netip.Addr]int{}}
	a.mu.SetRank(lockrank.Attempts)
	return a
}

// Begin counts an attempt at dest. It returns false if there are too many; the guest then sends its SYN again.
func (a *Attempts) Begin(dest netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n >= a.most || a.byDest[dest] >= max(1, min(minShare, a.most/2), (a.most-a.n)/2) {
		return false
	}
	a.byDest[dest]++
	a.n++
	return true
}

// End must be called once for every attempt that Begin has counted.
func (a *Attempts) End(dest netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n--
	if a.byDest[dest]--; a.byDest[dest] == 0 {
		delete(a.byDest, dest)
	}
}

// Len is how many attempts are under way.
func (a *Attempts) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}
