package fdbudget

import (
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Use is a purpose of descriptors.
type Use uint8

const (
	// Stack: the host's sockets of TCP connections on the stack path, those being dialled included; one each.
	Stack Use = iota
	// Splice: both sockets of TCP connections on the splice path, those being dialled included; two each.
	Splice
	// UDP: outbound sockets for datagrams and ping sockets; one each.
	UDP
	// Relay: connections and datagram flows between two loopbacks; two each.
	Relay
	// Listeners: ports of one loopback that are forwarded to another; one each.
	Listeners
	// Pipes: what splice(2) moves bulk data through; two each.
	Pipes
	// Pool: sockets of the guest's namespace that are open and not used yet; one each.
	Pool

	numUses
)

const (
	// parts is the number of parts of the limit in which shares are given.
	parts = 16
	// reservedParts of the limit cannot be taken, and not fewer descriptors than minReserve: the control socket's
	// connections, the resolver's upstreams and published ports need them.
	reservedParts = 2
	minReserve    = 32
)

// shares are the most that each use may hold, in parts of the limit.
var shares = [numUses]int64{
	Stack:     14, // the stack path is the fallback of the splice path: whatever is free
	Splice:    8,
	UDP:       4, // many idle sockets must leave the larger part to TCP
	Relay:     8,
	Pipes:     2, // only connections in bulk need one, and without it they are copied
	Pool:      3, // every kind of socket that a pool may have; see netns.Pool
	Listeners: 8, // "all ports" of a namespace is 65,535: connections need descriptors too
}

// Budget accounts descriptors. Safe for concurrent use; Take and Give are a few atomic operations.
type Budget struct {
	total int64 // that may be taken altogether
	most  [numUses]int64

	taken [numUses]atomic.Int64
	sum   atomic.Int64
}

// New divides limit descriptors.
func New(limit int64) *Budget {
	reserve := min(max(limit/parts*reservedParts, minReserve), limit/2)
	b := &Budget{total: limit - reserve}
	for u, share := range shares {
		b.most[u] = min(max(limit/parts*share, 2), b.total)
	}
	return b
}

// Process is the budget of this process: every gateway in it shares one limit. The soft limit is read once.
var Process = sync.OnceValue(func() *Budget {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur > math.MaxInt32 {
		return New(math.MaxInt32)
	}
	return New(int64(lim.Cur))
})

// Take takes n descriptors for u, all or none. It returns false if u has its share already, or if the total is in use.
func (b *Budget) Take(u Use, n int) bool {
	if b.taken[u].Add(int64(n)) > b.most[u] {
		b.taken[u].Add(-int64(n))
		return false
	}
	if b.sum.Add(int64(n)) > b.total {
		b.Give(u, n)
		return false
	}
	return true
}

// TakeAnyway takes n descriptors that are open already, even if that exceeds a share.
func (b *Budget) TakeAnyway(u Use, n int) {
	b.taken[u].Add(int64(n))
	b.sum.Add(int64(n))
}

// Free is how many descriptors u could take at the moment; it may be negative.
func (b *Budget) Free(u Use) int {
	return int(min(b.most[u]-b.taken[u].Load(), b.total-b.sum.Load()))
}

// Give returns n descriptors of u to the budget.
func (b *Budget) Give(u Use, n int) {
	b.sum.Add(-int64(n))
	b.taken[u].Add(-int64(n))
}

// Share is the most descriptors that u may hold.
func (b *Budget) Share(u Use) int { return int(b.most[u]) }

// Taken is how many descriptors u holds.
func (b *Budget) Taken(u Use) int { return int(b.taken[u].Load()) }
