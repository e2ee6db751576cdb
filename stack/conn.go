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

// ErrWouldBlock is returned by ReadTo and WriteFrom when nothing can move now; wait on Readable or Writable.
var ErrWouldBlock = errors.New("stack: would block")

// Conn is the guest's side of one TCP connection, without the copies of a net.Conn: data goes from netstack's buffers
// straight to a writer and from a reader straight into them. One goroutine may read while another writes; Abort and
// Close may be called from any.
type Conn struct {
	Flow
	ep      tcpip.Endpoint
	wq      waiter.Queue
	rd, wr  waiter.Entry
	fail    waiter.Entry // registered when failing is set
	failing bool
	finSent atomic.Bool
	rdC     chan struct{}
	wrC     chan struct{}
}

func (c *Conn) init(ep tcpip.Endpoint) {
	c.ep = ep
	// Errors and hang-ups wake both sides, whichever saw them first.
	c.rd, c.rdC = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	c.wr, c.wrC = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&c.rd)
	c.wq.EventRegister(&c.wr)
	// The other side's kernel has its own Nagle; delaying again here would only add latency.
	ep.SocketOptions().SetDelayOption(false)
}

// Readable receives after data, EOF or an error may have arrived since the last receive.
func (c *Conn) Readable() <-chan struct{} { return c.rdC }

// Writable receives after room, or an error, may have appeared since the last receive.
func (c *Conn) Writable() <-chan struct{} { return c.wrC }

// ReadTo moves what the guest has sent to w, one Write a chunk, until there is no more or w returns an error; w is
// called with the endpoint's lock held and must not block: it returns io.ErrShortWrite with what it took. The error is
// ErrWouldBlock, io.EOF after the guest's FIN, or a syscall.Errno.
func (c *Conn) ReadTo(w io.Writer) (int, error) {
	res, err := c.ep.Read(w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		return res.Count, nil
	case *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer: // bad buffer: w took nothing
		return 0, ErrWouldBlock
	case *tcpip.ErrClosedForReceive:
		if c.Failed() { // an endpoint tells its error once, and a write has been told
			return 0, unix.ECONNRESET
		}
		return 0, io.EOF
	}
	return 0, Errno(err)
}

// WriteFrom moves n bytes from r to the guest, or as many as there is room for, and returns how many. r must deliver
// every byte that it is asked for: n must be exact.
func (c *Conn) WriteFrom(r io.Reader, n int) (int, error) {
	m, err := c.ep.Write(payload{r, n}, tcpip.WriteOptions{})
	switch err.(type) {
	case nil:
		return int(m), nil
	case *tcpip.ErrWouldBlock:
		return int(m), ErrWouldBlock
	}
	return int(m), Errno(err)
}

type payload struct {
	io.Reader
	n int
}

func (p payload) Len() int { return p.n }

// CloseWrite sends FIN after what was written.
func (c *Conn) CloseWrite() error {
	c.finSent.Store(true)
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return Errno(err)
	}
	return nil
}

// Abort sends RST and forgets the connection.
func (c *Conn) Abort() { c.ep.Abort() }

// Close closes both directions; unread data makes it a reset (RFC 2525 2.17).
func (c *Conn) Close() { c.ep.Close() }

// ModerateReceive tells the window's auto-tuning that n bytes were consumed.
func (c *Conn) ModerateReceive(n int) { c.ep.ModerateRecvBuf(n) }

// Failed says whether the connection ended other than by FINs: by a reset, an error or a timeout.
func (c *Conn) Failed() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose: // netstack goes here when a reset follows the guest's FIN and ours was not sent yet
		return !c.finSent.Load()
	}
	return false
}

// OnFailure has fn called when the connection fails, perhaps more than once. fn must not block and must not call c.
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

// ExpectDeath turns on keep-alive with the given pace: after a FIN nothing else tells a guest that waits from one that
// has vanished.
func (c *Conn) ExpectDeath(pace time.Duration) {
	idle, interval := tcpip.KeepaliveIdleOption(pace), tcpip.KeepaliveIntervalOption(pace)
	_ = c.ep.SetSockOpt(&idle)
	_ = c.ep.SetSockOpt(&interval)
	c.ep.SocketOptions().SetKeepAlive(true)
}

// Detach stops the notifications; Readable and Writable receive nothing more.
func (c *Conn) Detach() {
	c.wq.EventUnregister(&c.rd)
	c.wq.EventUnregister(&c.wr)
	if c.failing {
		c.wq.EventUnregister(&c.fail)
	}
}

// NetConn returns the connection as a net.Conn, for services of the gateway itself. c must not be used any more.
func (c *Conn) NetConn() net.Conn {
	c.Detach()
	return gonet.NewTCPConn(&c.wq, c.ep)
}
