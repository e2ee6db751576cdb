//go:build lockrank

package lockrank

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// Checked says whether this build checks the order.
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

var (
	heldMu sync.Mutex
	held   = map[uint64][]*Mutex{} // by goroutine, in the order in which they were taken
)

// Lock panics if the goroutine holds a lock of the same or of a larger rank.
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
		l := held[id]
		if i := slices.Index(l, m); i >= 0 {
			if l = slices.Delete(l, i, i+1); len(l) == 0 {
				delete(held, id)
			} else {
				held[id] = l
			}
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
			panic(fmt.Sprintf("lock order: %v is taken while %v is held", m.rank, h.rank))
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

// goroutine reads the number of the calling goroutine from the first line of its stack, "goroutine 7 [running]:".
func goroutine() uint64 {
	var b [64]byte
	line := b[:runtime.Stack(b[:], false)]
	line = bytes.TrimPrefix(line, []byte("goroutine "))
	number, _, _ := bytes.Cut(line, []byte(" "))
	id, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		panic("lockrank: the runtime prints goroutines in another form: " + string(line))
	}
	return id
}
