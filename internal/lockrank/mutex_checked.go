//go:build lockrank

package lockrank

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
)

// Checked reports whether this build checks the order.
const Checked = true

// unranked locks are not checked.
const unranked Rank = 0

// Mutex is a sync.Mutex whose place in the order is checked. Its zero value is unlocked, and has no rank.
type Mutex struct {
	mu   sync.Mutex
	rank Rank
}

// SetRank gives the lock its place in the order. It must be called before the lock is shared.
func (m *Mutex) SetRank(r Rank) { m.rank = r }

// violated ends the process: the data plane recovers from panics, and would go on without the lock.
var violated = func(text string) {
	fmt.Fprintf(os.Stderr, "%s\n%s", text, debug.Stack())
	os.Exit(2)
}

var (
	heldMu sync.Mutex
	held   = map[uint64][]*Mutex{} // by goroutine, in the order in which they were taken
)

// Lock ends the process if the goroutine holds a lock of the same or of a larger rank.
func (m *Mutex) Lock() {
	m.check()
	m.mu.Lock()
	m.note()
}

// TryLock does not wait, so that no order can be wrong.
func (m *Mutex) TryLock() bool {
	if !m.mu.TryLock() {
		return false
	}
	m.note()
	return true
}

// Unlock may be called by another goroutine than the one that called Lock, as for sync.Mutex; the data plane never does.
func (m *Mutex) Unlock() {
	if m.rank != unranked {
		id := goroutine()
		heldMu.Lock()
		if i := slices.Index(held[id], m); i >= 0 {
			held[id] = slices.Delete(held[id], i, i+1) // it stays, empty, and allocates no more
		}
		heldMu.Unlock()
	}
	m.mu.Unlock()
}

func (m *Mutex) check() {
	if m.rank == unranked {
		return
	}
	heldMu.Lock()
	defer heldMu.Unlock()
	for _, h := range held[goroutine()] {
		if h.rank >= m.rank {
			violated(fmt.Sprintf("lock order: %v is taken while %v is held", m.rank, h.rank))
		}
	}
}

func (m *Mutex) note() {
	if m.rank == unranked {
		return
	}
	heldMu.Lock()
	defer heldMu.Unlock()
	id := goroutine()
	held[id] = append(held[id], m)
}

// buffers are for goroutine, which must not allocate: tests of the data plane count allocations.
var buffers = sync.Pool{New: func() any { return new([64]byte) }}

// goroutine reads the number of the calling goroutine from the first line of its stack, "goroutine 7 [running]:".
func goroutine() (id uint64) {
	b := buffers.Get().(*[64]byte)
	defer buffers.Put(b)
	line := b[:runtime.Stack(b[:], false)]
	for _, c := range bytes.TrimPrefix(line, []byte("goroutine ")) {
		if c < '0' || c > '9' {
			break
		}
		id = id*10 + uint64(c-'0')
	}
	if id == 0 {
		panic("lockrank: the runtime prints goroutines in another form: " + string(line))
	}
	return id
}
