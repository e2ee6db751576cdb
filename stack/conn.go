package stack

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// ErrWouldBlock is returned by ReadTo and WriteFrom if no data can be moved now: wait on Readable or Writable.
var ErrWouldBlock = errors.New("stack: would block")

// Conn is the gateway's end of a TCP connection with the guest. Unlike a net.Conn it moves data between netstack's buffers and
// a writer or reader without an intermediate copy. One goroutine may read while another one writes; Abort and Close may be
// called from any.
type Conn struct {
	Flow
	ep      tcpip.Endpoint
	wq      waiter.Queue
	rd, wr  waiter.Entry
	fail    waiter.Entry // registered if failing is set
	failing bool
	finSent atomic.Bool
	buf     connBuffers
	seg     sentSegments
	urg     urgentState
	rdC     chan struct{}
	wrC     chan struct{}
}

func (c *Conn) init(ep tcpip.Endpoint, b *bufferBudget) {
	c.ep, c.buf.budget = ep, b
	b.add(c)
	// Errors and hang-ups wake both the reader and the writer.
	c.rd, c.rdC = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	c.wr, c.wrC = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&c.rd)
	c.wq.EventRegister(&c.wr)
	// Nagle's algorithm is up to the sender's kernel; applying it here again would only add latency.
	ep.SocketOptions().SetDelayOption(false)
}

// Readable returns a channel from which one value can be received after data, EOF or an error may have arrived.
func (c *Conn) Readable() <-chan struct{} { return c.rdC }

// Writable returns a channel from which one value can be received after space in the send buffer may have become free, or after an
// error.
func (c *Conn) Writable() <-chan struct{} { return c.wrC }

// ReadTo writes received data to w, one Write per chunk, until there is no more or w returns an error. w is called with the
// endpoint's lock held and must not block: if it cannot accept all, it returns the number of bytes accepted and io.ErrShortWrite.
// A w that is an UrgentWriter
// gets the guest's urgent data as such, any other in the stream. ReadTo returns the number of bytes moved. Its error is ErrWouldBlock, io.EOF after the guest's FIN, or a syscall.Errno.
func (c *Conn) ReadTo(w io.Writer) (int, error) {
	if u, ok := w.(UrgentWriter); ok && c.urg.marked.Load() {
		w = &urgentSplitter{c: c, w: u}
	}
	res, err := c.ep.Read(w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		c.noteMoved()
		c.urg.read += uint32(res.Count)
		return res.Count, nil
	case *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer: // the latter: w accepted nothing
		return 0, ErrWouldBlock
	case *tcpip.ErrClosedForReceive:
		if c.Failed() { // an endpoint reports its error once, and a write may have received it
			return 0, unix.ECONNRESET
		}
		return 0, io.EOF
	}
	return 0, Errno(err)
}

// WriteFrom sends n bytes from r to the guest, or as many as the send buffer takes, and returns how many. r must be able to
// deliver n bytes. The error is ErrWouldBlock or a syscall.Errno.
func (c *Conn) WriteFrom(r io.Reader, n int) (int, error) {
	c.seg.mu.Lock()
	defer c.seg.mu.Unlock()
	if !c.admitSegment() {
		return 0, ErrWouldBlock
	}
	m, err := c.ep.Write(payload{r, n}, tcpip.WriteOptions{})
	if _, full := err.(*tcpip.ErrWouldBlock); full && (c.resized() || c.growSend()) {
		m, err = c.ep.Write(payload{r, n}, tcpip.WriteOptions{})
	}
	switch err.(type) {
	case nil:
		c.noteMoved()
		c.noteSegment(m)
		c.noteWritten(int(m))
		c.buf.drained, c.buf.full = c.buf.drained || c.buf.full, false
		return int(m), nil
	case *tcpip.ErrWouldBlock:
		c.buf.full = true
		return int(m), ErrWouldBlock
	}
	return int(m), Errno(err)
}

type payload struct {
	io.Reader
	n int
}

func (p payload) Len() int { return p.n }

// CloseWrite sends a FIN after all written data.
func (c *Conn) CloseWrite() error {
	c.finSent.Store(true)
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return Errno(err)
	}
	return nil
}

// Abort resets the connection and discards all data.
func (c *Conn) Abort() { c.ep.Abort() }

// Close closes both directions. If there is unread data it sends a reset (RFC 2525 2.17).
func (c *Conn) Close() { c.ep.Close() }

// Failed reports whether the connection ended other than by FINs: by a reset, an error or a timeout.
func (c *Conn) Failed() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose: // netstack's state after a reset that follows the guest's FIN, before our FIN was sent
		return !c.finSent.Load()
	}
	return false
}

// OnFailure registers fn to be called when the connection fails, or now if it has failed; perhaps more than once. fn must not
// block and must not call methods of c. OnFailure may be called once.
func (c *Conn) OnFailure(fn func()) {
	c.fail = waiter.NewFunctionEntry(waiter.EventErr|waiter.EventHUp, func(waiter.EventMask) {
		if c.Failed() {
			fn()
		}
	})
	c.failing = true
	c.wq.EventRegister(&c.fail)
	if c.Failed() {
		fn()
	}
}

// EnableKeepAlive turns on keep-alive with the given time and interval. On a half-closed connection only keep-alive tells a
// guest that still waits from one that has vanished.
func (c *Conn) EnableKeepAlive(interval time.Duration) {
	idle, between := tcpip.KeepaliveIdleOption(interval), tcpip.KeepaliveIntervalOption(interval)
	_ = c.ep.SetSockOpt(&idle)
	_ = c.ep.SetSockOpt(&between)
	c.ep.SocketOptions().SetKeepAlive(true)
}

// Detach ends all notifications: those of Readable, Writable and OnFailure. The Conn must not be used afterwards. If it was
// closed, netstack delivers the rest of the data for a minute; what the guest has not taken then is discarded, with a reset.
func (c *Conn) Detach() {
	c.unregister()
	c.release(true)
}

func (c *Conn) unregister() {
	c.forget()
	c.wq.EventUnregister(&c.rd)
	c.wq.EventUnregister(&c.wr)
	if c.failing {
		c.wq.EventUnregister(&c.fail)
	}
}

// NetConn returns the connection as a net.Conn, for services of the gateway itself. c must not be used afterwards.
func (c *Conn) NetConn() net.Conn {
	c.unregister()
	c.release(false)
	return gonet.NewTCPConn(&c.wq, c.ep)
}
