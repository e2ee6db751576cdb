package stack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Netstack's buffers hold what one side of a connection does not read. Each connection has a send buffer (towards the guest)
// and a receive buffer (from it), whose sizes, and the number of segments in the former, are its grant from one budget for all
// connections. They begin small and grow while their reader keeps up, so a reader that is slow from the beginning holds little;
// what grows, and what a new connection begins with, is a share of what is left, so that all grants together stay near the budget
// however many connections there are. Netstack enforces the sizes: it takes no more from the forwarder than the send buffer holds,
// and advertises a window of half of the receive buffer.
const (
	// DefaultTCPBuffers is Config.TCPBuffers where it is 0. A connection needs one megabyte in each direction to be at its
	// fastest, so it is enough for 32 such connections; some thousand slow readers take less than 100 MiB with it.
	DefaultTCPBuffers = 64 << 20

	// A buffer begins with a share of what is left of the budget, between these. The link has hardly any latency, so 128 KiB
	// keep it busy until the buffer has grown. The lowest sizes, which are granted even when nothing is left, are about what an
	// idle connection costs anyway.
	beginBuffer         = 128 << 10
	lowestSendBuffer    = 8 << 10
	lowestReceiveBuffer = 16 << 10
	// Segments begin with half as much, which is enough for a writer of short messages, and with nothing at the lowest.
	beginSegmentsShare = 2
	beginShare         = 256
	// growShare bounds the growth of one buffer at a time in the same way.
	growShare = 8
	// leastGrowth is not worth less.
	leastGrowth = 16 << 10

	// sweepBuffers is how often buffers are looked at that have grown: those of idle connections shrink again.
	sweepBuffers = time.Second
	// lingerSweeps is after how many sweeps a connection that was closed is reset if the guest still does not take what is
	// left for it. Linux gives up an orphaned socket after 8 probes of its window, some 100 s (tcp_orphan_retries).
	lingerSweeps = 60
)

// bufferBudget is what is granted to the buffers of all connections.
type bufferBudget struct {
	limit   int64
	taken   atomic.Int64
	refused atomic.Uint64 // growths that were refused

	mu       sync.Mutex
	conns    map[*Conn]struct{} // guarded by mu
	sweeping *time.Timer        // not nil while a sweep is due; guarded by mu
	closed   bool               // guarded by mu
}

func newBufferBudget(limit int64) *bufferBudget {
	if limit <= 0 {
		limit = DefaultTCPBuffers
	}
	return &bufferBudget{limit: limit, conns: map[*Conn]struct{}{}}
}

// take reserves up to want bytes for c, a share of what is left, or returns 0.
func (b *bufferBudget) take(c *Conn, want int64) int64 {
	n := min(want, (b.limit-b.taken.Load())/growShare)
	if n < leastGrowth {
		b.refused.Add(1)
		return 0
	}
	c.charge(n)
	b.sweepLater()
	return n
}

func (b *bufferBudget) sweepLater() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepLaterLocked()
}

func (b *bufferBudget) sweepLaterLocked() {
	if b.sweeping == nil && !b.closed {
		b.sweeping = time.AfterFunc(sweepBuffers, b.sweep)
	}
}

// add grants a new connection its first buffers.
func (b *bufferBudget) add(c *Conn) {
	begin := min(max((b.limit-b.taken.Load())/beginShare, 0), beginBuffer)
	c.buf.base = [buffers]int64{max(begin, lowestSendBuffer), max(begin, lowestReceiveBuffer), begin / beginSegmentsShare}
	c.buf.grant = c.buf.base
	c.setSegmentLimit()
	c.charge(c.buf.base[sendBuf] + c.buf.base[receiveBuf] + c.buf.base[segmentBuf])
	c.setSize(sendBuf, c.buf.base[sendBuf])
	c.setSize(receiveBuf, c.buf.base[receiveBuf])
	c.ep.SocketOptions().SetSendBufferSize(c.buf.base[sendBuf], true) // turns netstack's own tuning of it off
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[c] = struct{}{}
}

// close ends the sweeps.
func (b *bufferBudget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.sweeping != nil {
		b.sweeping.Stop()
	}
}

// sweep shrinks the buffers of idle connections and removes those that are gone.
func (b *bufferBudget) sweep() {
	b.mu.Lock()
	b.sweeping = nil
	conns := make([]*Conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	again := false
	for _, c := range conns {
		if c.sweepBuffers() {
			again = true
		}
	}
	if again {
		b.sweepLater()
	}
}

// remove returns what a connection has been granted. It may be called with an endpoint's lock held.
func (b *bufferBudget) remove(c *Conn) {
	if n := c.buf.charged.Swap(removed); n != removed {
		b.taken.Add(-n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

// What a connection is granted, as indices: its two buffers, and the segments that its send buffer may consist of (segments.go).
const (
	sendBuf = iota
	receiveBuf
	segmentBuf
	buffers // their number
)

// connBuffers are the sizes of a connection's buffers.
type connBuffers struct {
	budget *bufferBudget
	base   [buffers]int64 // sizes at the beginning, constant afterwards

	mu    sync.Mutex
	grant [buffers]int64 // of the budget; a size is never above it; guarded by mu
	size  [2]int64       // guarded by mu

	charged atomic.Int64 // the sum of grant, or removed

	moved atomic.Bool // data has moved since the last sweep

	// Of the goroutine that writes: the buffer was full, and has been drained after it was full at its present size.
	full, drained bool

	detached atomic.Bool  // the Conn's user is done with it
	gone     waiter.Entry // registered then, and called when netstack is done with it as well
	lingers  bool         // it may not outlive its user for long
	lingered int          // sweeps since then; of the sweep alone
}

// removed is the charge of a connection that no longer counts.
const removed = -1

// charge changes what a connection takes of the budget.
func (c *Conn) charge(n int64) {
	for {
		now := c.buf.charged.Load()
		if now == removed {
			return
		}
		if c.buf.charged.CompareAndSwap(now, now+n) {
			c.buf.budget.taken.Add(n)
			return
		}
	}
}

// setSize sets the size of a buffer. buf.mu is held, or the connection is new.
func (c *Conn) setSize(which int, n int64) {
	c.buf.size[which] = n
	if which == sendBuf {
		c.resize()
	} else {
		c.ep.SocketOptions().SetReceiveBufferSize(n, false)
	}
}

// resize sets netstack's size of the send buffer. buf.mu is held, or the connection is new.
func (c *Conn) resize() {
	n := c.buf.size[sendBuf]
	if stop := c.seg.stop; stop > 0 {
		n = min(n, stop)
	}
	c.ep.SocketOptions().SetSendBufferSize(n, false)
}

// resized sets the size again if it is not what it should be, and says whether it was not: netstack itself stores the size that it
// has read when it reports that a buffer is writable, and may do so after it was changed.
func (c *Conn) resized() bool {
	c.buf.mu.Lock()
	defer c.buf.mu.Unlock()
	if c.ep.SocketOptions().GetSendBufferSize() >= c.buf.size[sendBuf] {
		return false
	}
	c.resize()
	return true
}

// noteMoved notes that the connection is not idle.
func (c *Conn) noteMoved() {
	if !c.buf.moved.Load() {
		c.buf.moved.Store(true)
	}
}

// growSend doubles a send buffer that is full, and says whether it did. One that has not been drained since it was full the
// last time belongs to a slow reader.
func (c *Conn) growSend() bool {
	if c.buf.budget == nil || !c.buf.drained {
		return false
	}
	c.buf.drained = false
	c.buf.mu.Lock()
	defer c.buf.mu.Unlock()
	size := c.buf.size[sendBuf]
	want := min(2*size, tcpSendBuffer)
	if want <= size {
		return false
	}
	if short := want - c.buf.grant[sendBuf]; short > 0 {
		c.buf.grant[sendBuf] += c.buf.budget.take(c, short)
		want = c.buf.grant[sendBuf]
	}
	if want <= size {
		return false
	}
	c.setSize(sendBuf, want)
	return true
}

// ModerateReceive informs netstack's auto-tuning of the receive window that n bytes were consumed. It lets the buffer grow as
// far as the budget allows.
func (c *Conn) ModerateReceive(n int) {
	b := c.buf.budget
	if b == nil {
		return
	}
	c.buf.mu.Lock()
	defer c.buf.mu.Unlock()
	size := c.buf.size[receiveBuf]
	if size >= c.buf.grant[receiveBuf] && (b.limit-b.taken.Load())/growShare < leastGrowth {
		return
	}
	c.ep.ModerateRecvBuf(n)
	now := c.ep.SocketOptions().GetReceiveBufferSize()
	if now <= size {
		return
	}
	if short := now - c.buf.grant[receiveBuf]; short > 0 {
		c.buf.grant[receiveBuf] += b.take(c, short)
		now = c.buf.grant[receiveBuf]
	}
	c.setSize(receiveBuf, max(now, size))
}

// sweepBuffers shrinks the buffers of a connection that has been idle and holds nothing, or ends one whose user is done with
// it. It says whether the connection must be looked at again.
func (c *Conn) sweepBuffers() (again bool) {
	if c.buf.detached.Load() {
		if c.ended() {
			c.buf.budget.remove(c)
			return false
		}
		if c.buf.lingered++; c.buf.lingers && c.buf.lingered > lingerSweeps {
			c.ep.Abort()
			c.buf.budget.remove(c)
			return false
		}
		return true
	}
	c.seg.mu.Lock()
	defer c.seg.mu.Unlock()
	c.buf.mu.Lock()
	defer c.buf.mu.Unlock()
	if c.buf.grant == c.buf.base {
		return false // it says so itself when it grows
	}
	if c.buf.moved.Swap(false) {
		return true
	}
	if used, err := c.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption); err == nil && used == 0 && c.buf.size[receiveBuf] > c.buf.base[receiveBuf] {
		c.setSize(receiveBuf, c.buf.base[receiveBuf])
		c.giveBackLocked(receiveBuf)
	}
	// Netstack does not tell how much the send buffer holds, but whether there is room: smaller, it shows whether it was
	// drained. A writer that finds it full meanwhile waits until half of the smaller size is free.
	c.setSize(sendBuf, c.buf.base[sendBuf])
	if c.ep.Readiness(waiter.WritableEvents)&waiter.WritableEvents != 0 {
		c.giveBackLocked(sendBuf)
	}
	c.sweepSegments()
	return c.buf.grant != c.buf.base
}

func (c *Conn) giveBackLocked(which int) {
	c.charge(c.buf.base[which] - c.buf.grant[which])
	c.buf.grant[which] = c.buf.base[which]
}

// ended reports whether netstack holds no data for the connection any more.
func (c *Conn) ended() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
		return true
	}
	return false
}

// release is for a connection whose user is done with it. Netstack may still have data for the guest, which counts until it
// is gone; lingers says that this is for a limited time.
func (c *Conn) release(lingers bool) {
	b := c.buf.budget
	if b == nil || c.buf.detached.Load() {
		return
	}
	c.buf.lingers = lingers
	c.buf.detached.Store(true)
	c.buf.gone = waiter.NewFunctionEntry(waiter.EventErr|waiter.EventHUp, func(waiter.EventMask) {
		if c.ended() {
			b.remove(c)
		}
	})
	c.wq.EventRegister(&c.buf.gone)
	if c.ended() {
		b.remove(c)
		return
	}
	b.sweepLater()
}
