package stack

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"rootlessnet/flow"
)

// synInfo holds the fields of a SYN that netstack's forwarder does not report.
type synInfo struct {
	endpoint flow.Endpoint
	seq      uint32
	ttl, tos uint8
}

// synTable carries synInfo from the receive path to the TCPRequest of the same SYN. It has an entry for exactly the requests that
// netstack's forwarder counts as in flight. Both are changed under mu; otherwise an entry could remain forever.
type synTable struct {
	mu sync.Mutex
	m  map[gstack.TransportEndpointID]synInfo // guarded by mu
}

// deliverSYN is called by netstack for every TCP segment that belongs to no endpoint. It passes a SYN on to netstack's forwarder.
func (s *Stack) deliverSYN(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	t := header.TCP(pkt.TransportHeader().Slice())
	if len(t) < header.TCPMinimumSize || t.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false // netstack answers with a reset, or drops the segment if it is one
	}
	info := synInfo{seq: t.SequenceNumber()}
	if p := s.portFor(toNetip(id.RemoteAddress)); p != nil {
		info.endpoint = p.endpoint
	}
	info.ttl, info.tos = ttlTOS(pkt.NetworkHeader().Slice())
	s.syns.mu.Lock()
	defer s.syns.mu.Unlock()
	if _, known := s.syns.m[id]; known {
		return true // a retransmission while the request is in flight
	}
	if len(s.syns.m) >= maxInFlightSYN {
		s.ns.Stats().TCP.ForwardMaxInFlightDrop.Increment()
		return true
	}
	s.syns.m[id] = info
	ok := s.tcp.HandlePacket(id, pkt)
	if !ok {
		delete(s.syns.m, id)
	}
	return ok
}

// handleTCP runs on a goroutine that netstack starts for each SYN.
func (s *Stack) handleTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	req := &TCPRequest{
		s: s, r: r, id: id,
		Flow: Flow{
			Src: netip.AddrPortFrom(toNetip(id.RemoteAddress), id.RemotePort),
			Dst: netip.AddrPortFrom(toNetip(id.LocalAddress), id.LocalPort),
		},
	}
	s.syns.mu.Lock()
	i := s.syns.m[id]
	s.syns.mu.Unlock()
	req.Endpoint, req.TTL, req.TOS = i.endpoint, i.ttl, i.tos
	defer func() {
		if e := recover(); e != nil {
			s.panicked("panic while handling a connection; the connection is dropped", e, "flow", req.Flow)
		}
		req.finish(false)
	}()
	if s.handler != nil {
		s.handler.HandleTCP(req)
	}
}

// TCPRequest is a connection that the guest opens. Exactly one of Accept, Reset, Unreachable and Ignore must be called, by the
// goroutine that received the request.
type TCPRequest struct {
	Flow
	TTL, TOS uint8

	s  *Stack
	r  *tcp.ForwarderRequest
	id gstack.TransportEndpointID

	done     bool
	accepted atomic.Bool // Accept has returned
}

// finish removes the request from the synTable and from netstack's forwarder. Without it netstack would count the request as in
// flight forever.
func (q *TCPRequest) finish(reset bool) {
	if q.done {
		return
	}
	q.done = true
	q.s.syns.mu.Lock()
	defer q.s.syns.mu.Unlock()
	delete(q.s.syns.m, q.id)
	q.r.Complete(reset)
}

// Reset refuses the connection with a TCP reset. The error is always nil.
func (q *TCPRequest) Reset() error {
	q.finish(true)
	return nil
}

// Ignore sends no answer. A retransmitted SYN is a new request.
func (q *TCPRequest) Ignore() { q.finish(false) }

// Unreachable refuses the connection with an ICMP error. It returns an error if that cannot be sent.
func (q *TCPRequest) Unreachable(e ICMPError) error {
	q.s.syns.mu.Lock()
	seq := q.s.syns.m[q.id].seq
	q.s.syns.mu.Unlock()
	q.finish(false)
	return q.s.writeTCPError(q.Flow, seq, e)
}

// Accept completes the handshake. It blocks until the guest's ACK arrives or netstack gives up. Errors are syscall.Errno.
func (q *TCPRequest) Accept() (*Conn, error) {
	if !q.s.enter() {
		q.finish(false)
		return nil, syscall.ENETDOWN
	}
	defer q.s.wg.Done()
	c := &Conn{Flow: q.Flow}
	q.s.syns.mu.Lock()
	c.urg.irs = q.s.syns.m[q.id].seq
	q.s.syns.mu.Unlock()
	q.s.conns.add(q.id, c)
	ep, err := q.r.CreateEndpoint(&c.wq)
	q.accepted.Store(true)
	q.finish(false)
	if err != nil {
		c.forget()
		return nil, Errno(err)
	}
	c.init(ep, q.s.buffers)
	q.s.synLimit.giveBack(q.Dst)
	return c, nil
}

// Cancel makes a call of Accept fail that is in progress or about to start; by itself netstack would wait two minutes for the
// guest's ACK. It may be called from any goroutine, and blocks until Accept's endpoint is aborted or Accept has returned.
func (q *TCPRequest) Cancel() {
	for !q.accepted.Load() {
		if ep := q.s.ns.FindTransportEndpoint(netProto(q.Dst.Addr()), tcp.ProtocolNumber, q.id, nicID); ep != nil {
			ep.Abort()
			return
		}
		time.Sleep(time.Millisecond) // the endpoint is not registered yet
	}
}

// DialTCP connects to the guest at dst from src, which may be any address, such as that of a client of a published port. Port 0
// in src selects a free one. It fails with the error of ctx or with a syscall.Errno: ECONNREFUSED if the guest answers with a
// reset, ETIMEDOUT, EHOSTUNREACH, EADDRINUSE if the 4-tuple is in use, ENETDOWN if the stack is closed.
func (s *Stack) DialTCP(ctx context.Context, src, dst netip.AddrPort) (*Conn, error) {
	if !s.enter() {
		return nil, syscall.ENETDOWN
	}
	defer s.wg.Done()
	c := &Conn{Flow: Flow{Src: src, Dst: dst}}
	if p := s.portFor(dst.Addr()); p != nil {
		c.Endpoint = p.endpoint
	}
	ep, terr := s.ns.NewEndpoint(tcp.ProtocolNumber, netProto(dst.Addr()), &c.wq)
	if terr != nil {
		return nil, Errno(terr)
	}
	fail := func(err error) (*Conn, error) {
		c.forget()
		ep.Abort()
		return nil, err
	}
	// One client address and port may be connected to several published ports: only the 4-tuple must be unique.
	ep.SocketOptions().SetReusePort(true)
	if terr = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: fromNetip(src.Addr()), Port: src.Port()}); terr != nil {
		return fail(Errno(terr))
	}
	id := gstack.TransportEndpointID{LocalAddress: fromNetip(src.Addr()), LocalPort: src.Port(), RemoteAddress: fromNetip(dst.Addr()), RemotePort: dst.Port()}
	if bound, err := ep.GetLocalAddress(); err == nil {
		id.LocalPort = bound.Port
	}
	s.conns.add(id, c)
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: fromNetip(dst.Addr()), Port: dst.Port()})
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			return fail(ctx.Err())
		case <-s.done:
			return fail(syscall.ENETDOWN)
		}
	}
	if terr != nil {
		if _, taken := terr.(*tcpip.ErrBadLocalAddress); taken {
			terr = &tcpip.ErrPortInUse{} // with spoofing every address is valid, so the 4-tuple must be in use
		}
		return fail(Errno(terr))
	}
	c.init(ep, s.buffers)
	return c, nil
}

// Errno translates an error of netstack into the errno that a Linux socket would return, or EIO.
func Errno(err tcpip.Error) syscall.Errno {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable, *tcpip.ErrNoNet:
		return syscall.ENETUNREACH
	case *tcpip.ErrPortInUse, *tcpip.ErrNoPortAvailable:
		return syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS
	case *tcpip.ErrNotConnected, *tcpip.ErrInvalidEndpointState:
		return syscall.ENOTCONN
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	}
	return syscall.EIO
}
