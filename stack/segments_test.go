package stack

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"rootlessnet/internal/race"
)

// singles writes up to n single bytes and returns how many were taken.
func singles(t *testing.T, c *Conn, n int) int {
	t.Helper()
	for i := range n {
		if m, err := c.WriteFrom(zeroes{}, 1); errors.Is(err, ErrWouldBlock) {
			return i
		} else if err != nil || m != 1 {
			t.Fatal(m, err)
		}
	}
	return n
}

// TestSegmentMemory: segmentMemory is what a segment of one byte takes.
func TestSegmentMemory(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector takes memory of its own")
	}
	b := newBench(t, offloads(), nil)
	conns, p := b.accept(), b.peer()
	c, _ := opened(t, p, conns, 80)
	p.deaf.Store(true)
	c.seg.limit = 1 << 30 // no admission
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // the pools as well
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const n = 20000
	if got := singles(t, c, n); got != n {
		t.Fatalf("%d of %d were taken", got, n)
	}
	each := (heap() - before) / n
	t.Logf("a segment of one byte takes %d bytes", each)
	if each > segmentMemory || each < segmentMemory/2 {
		t.Errorf("a segment of one byte takes %d bytes, counted are %d", each, segmentMemory)
	}
}

// TestSegmentsAreCounted: single bytes are taken only as far as the memory of their segments is granted. When the guest takes them, the
// writer is told, and the grant grows; it is given back when the connection is idle.
func TestSegmentsAreCounted(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns, p := b.accept(), b.peer()
	c, g := opened(t, p, conns, 80)
	idle := b.s.buffers.taken.Load()
	granted := int(c.buf.base[segmentBuf] / segmentMemory)
	p.deaf.Store(true)
	if n := singles(t, c, 10000); n > granted || n < granted/2 {
		t.Errorf("%d segments were taken, %d are granted", n, granted)
	}
	for range 10 { // nothing was acknowledged, so nothing grows
		if n := singles(t, c, 1); n != 0 {
			t.Fatal("one more was taken")
		}
	}
	if taken := b.s.buffers.taken.Load(); taken != idle {
		t.Errorf("a writer of single bytes is granted %d bytes, was %d", taken, idle)
	}
	p.deaf.Store(false) // netstack retransmits
	go func() {
		for buf := make([]byte, 1<<16); ; {
			if _, err := g.Read(buf); err != nil {
				return
			}
		}
	}()
	deadline := time.After(2 * patience)
	var grown int64
	for sent := 0; sent < 100_000; {
		n := singles(t, c, 1000)
		sent += n
		grown = max(grown, b.s.buffers.taken.Load())
		if n == 1000 {
			continue
		}
		select {
		case <-c.Writable():
		case <-deadline:
			t.Fatalf("after %d bytes the connection is not writable", sent)
		}
	}
	if grown <= idle {
		t.Errorf("for a guest that reads nothing more is granted: %d", grown)
	}
	waitFor(t, "the grant is given back", func() bool { return b.s.buffers.taken.Load() == idle })
	// The buffer has its size again.
	if size := c.ep.SocketOptions().GetSendBufferSize(); size != c.buf.base[sendBuf] {
		t.Errorf("the send buffer has %d bytes", size)
	}
	if err := writeAll(c, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	c.Abort()
	c.Detach()
}

// TestSegmentsOfManyConnections: with nothing left of the budget each connection still moves single bytes, and holds few.
func TestSegmentsOfManyConnections(t *testing.T) {
	const (
		limit = 1 << 20
		n     = 50
	)
	b := newBench(t, offloads(), func(c *Config) { c.TCPBuffers = limit })
	conns, p := b.accept(), b.peer()
	var list []*Conn
	for i := range n {
		c, _ := opened(t, p, conns, uint16(1000+i))
		list = append(list, c)
	}
	p.deaf.Store(true)
	held := 0
	for _, c := range list {
		got := singles(t, c, 1000)
		if got < leastSegments {
			t.Errorf("only %d segments were taken", got)
		}
		held += got
	}
	if most := limit + n*2*leastSegments*segmentMemory; held*segmentMemory > most {
		t.Errorf("%d segments of %d bytes are held, more than %d bytes", held, segmentMemory, most)
	}
	if taken, most := b.s.buffers.taken.Load(), int64(limit+n*(lowestSendBuffer+lowestReceiveBuffer)); taken > most {
		t.Errorf("granted are %d bytes, more than %d", taken, most)
	}
	for _, c := range list {
		c.Abort()
		c.Detach()
	}
	waitFor(t, "everything is given back", func() bool { return b.s.buffers.taken.Load() == 0 })
}
