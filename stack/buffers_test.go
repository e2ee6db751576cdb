package stack

import (
	"io"
	"net"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// pour writes to a connection until nothing is taken any more, and returns how much was.
func pour(c *Conn) (n int) {
	for stuck := 0; stuck < 20; {
		m, err := c.WriteFrom(zeroes{}, MaxSegment)
		n += m
		if err != nil {
			stuck++
			time.Sleep(5 * time.Millisecond)
		} else {
			stuck = 0
		}
	}
	return n
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// opened is a connection from the bench's peer, with both ends.
func opened(t *testing.T, p *peer, conns <-chan *Conn, port uint16) (*Conn, *gonet.TCPConn) {
	t.Helper()
	g, err := p.dial(ap(far4, port), patience)
	if err != nil {
		t.Fatal(err)
	}
	return <-conns, g
}

// TestBufferBudget: what all connections hold for guests that do not read is bounded, later ones hold less, and all is given
// back when they have ended.
func TestBufferBudget(t *testing.T) {
	const (
		limit = 2 << 20
		n     = 100
	)
	b := newBench(t, offloads(), func(c *Config) { c.TCPBuffers = limit })
	conns, p := b.accept(), b.peer()
	var stacks []*Conn
	var guests []net.Conn
	for i := range n {
		c, g := opened(t, p, conns, uint16(1000+i))
		stacks, guests = append(stacks, c), append(guests, g)
		for range 4 { // one that is not drained does not grow
			if c.growSend() {
				t.Fatal("the send buffer of a new connection grows")
			}
		}
	}
	most := int64(limit + n*(lowestSendBuffer+lowestReceiveBuffer))
	if taken := b.s.buffers.taken.Load(); taken > most {
		t.Errorf("%d connections are granted %d bytes, more than %d", n, taken, most)
	}
	first, last := stacks[0].buf.base[sendBuf], stacks[n-1].buf.base[sendBuf]
	if first > limit/beginShare && first > lowestSendBuffer || last != lowestSendBuffer {
		t.Errorf("the first begins with %d, the last with %d", first, last)
	}
	for i, c := range stacks {
		c.Abort()
		c.Detach()
		guests[i].Close()
	}
	waitFor(t, "everything is given back", func() bool { return b.s.buffers.taken.Load() == 0 })
	b.s.buffers.mu.Lock()
	defer b.s.buffers.mu.Unlock()
	if left := len(b.s.buffers.conns); left != 0 {
		t.Errorf("%d connections are left", left)
	}
}

// TestBuffersGrowAndShrink: the send buffer of a guest that reads grows, and shrinks again when the connection is idle.
func TestBuffersGrowAndShrink(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns, p := b.accept(), b.peer()
	c, g := opened(t, p, conns, 80)
	idle := b.s.buffers.taken.Load()
	if idle != 2*beginBuffer+beginBuffer/beginSegmentsShare {
		t.Errorf("an idle connection is granted %d bytes", idle)
	}
	const size = 32 << 20
	done := make(chan int64, 1)
	go func() {
		n, _ := io.CopyN(io.Discard, g, size)
		done <- n
	}()
	for sent := 0; sent < size; {
		n, err := c.WriteFrom(zeroes{}, min(MaxSegment, size-sent))
		sent += n
		if err != nil {
			select {
			case <-c.Writable():
			case <-time.After(patience):
				t.Fatalf("after %d bytes the guest takes no more", sent)
			}
		}
	}
	if n := <-done; n != size {
		t.Fatalf("%d bytes arrived", n)
	}
	if grown := b.s.buffers.taken.Load(); grown <= idle {
		t.Errorf("after %d MiB it is granted %d bytes", size>>20, grown)
	}
	waitFor(t, "the buffers shrink", func() bool { return b.s.buffers.taken.Load() == idle })
	// What the guest does not take still counts when the connection was closed.
	if held := pour(c); held == 0 {
		t.Error("nothing is held for the guest")
	}
	c.Close()
	c.Detach()
	if b.s.buffers.taken.Load() == 0 {
		t.Error("what is held for a guest that does not read does not count")
	}
	if _, err := io.Copy(io.Discard, g); err != nil {
		t.Error(err)
	}
	g.Close()
	waitFor(t, "everything is given back", func() bool { return b.s.buffers.taken.Load() == 0 })
}
