package stack

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"rootlessnet/flow"
)

// synInfo is what the forwarder of netstack does not tell of a SYN.
type synInfo struct {
	endpoint flow.Endpoint
	seq      uint32
	ttl, tos uint8
}

// synTable keeps synInfo from the packet path to the request that is made of the same packet. It holds exactly the
// requests that netstack's forwarder holds: both change under mu, or an entry could stay for ever.
type synTable struct {
	mu sync.Mutex
	m  map[gstack.TransportEndpointID]synInfo // guarded by mu
}

// deliverSYN sees every TCP segment that belongs to no endpoint, before netstack's forwarder.
func (s *Stack) deliverSYN(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	t := header.TCP(pkt.TransportHeader().Slice())
	if len(t) < header.TCPMinimumSize || t.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false // netstack answers with a reset, or drops a reset
	}
	info := synInfo{seq: t.SequenceNumber()}
	if p := s.portFor(toNetip(id.RemoteAddress)); p != nil {
		info.endpoint = p.endpoint
	}
	if ip := pkt.NetworkHeader().Slice(); ip[0]>>4 == 4 {
		info.ttl, info.tos = ip[8], ip[1]
	} else {
		info.ttl, info.tos = ip[7], ip[0]<<4|ip[1]>>4
	}
	s.syns.mu.Lock()
	defer s.syns.mu.Unlock()
	if _, known := s.syns.m[id]; known {
		return true // sent again while the host is being asked
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
			s.stats.drop(DropPanic)
			s.log.Error("panic in a connection", "flow", req.Flow, "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
		}
		req.finish(false)
	}()
	if s.handler != nil {
		s.handler.HandleTCP(req)
	}
}

// TCPRequest is a connection that the guest wants to open. Exactly one of Accept, Reset, Unreachable and Ignore ends
// it; all are for the goroutine that got the request.
type TCPRequest struct {
	Flow
	TTL, TOS uint8

	s  *Stack
	r  *tcp.ForwarderRequest
	id gstack.TransportEndpointID

	done     bool
	accepted atomic.Bool // Accept has returned
}

// finish gives the slot back; every request must, or netstack loses it for ever.
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

// Reset refuses the connection. The error is always nil.
func (q *TCPRequest) Reset() error {
	q.finish(true)
	return nil
}

// Ignore leaves the guest to its own timer; a SYN it sends again is a new request.
func (q *TCPRequest) Ignore() { q.finish(false) }

// Unreachable answers with an ICMP error.
func (q *TCPRequest) Unreachable(e ICMPError) error {
	q.s.syns.mu.Lock()
	seq := q.s.syns.m[q.id].seq
	q.s.syns.mu.Unlock()
	q.finish(false)
	return q.s.writeTCPError(q.Flow, seq, e)
}

// Accept completes the guest's handshake. It blocks until the guest answers or netstack gives up.
func (q *TCPRequest) Accept() (*Conn, error) {
	if !q.s.enter() {
		q.finish(false)
		return nil, syscall.ENETDOWN
	}
	defer q.s.wg.Done()
	c := &Conn{Flow: q.Flow}
	ep, err := q.r.CreateEndpoint(&c.wq)
	q.accepted.Store(true)
	q.finish(false)
	if err != nil {
		return nil, Errno(err)
	}
	c.init(ep)
	return c, nil
}

// Cancel makes a call of Accept fail that is under way or about to begin; netstack alone would wait two minutes for a
// guest that does not answer. It may be called from any goroutine; it blocks until the call has noticed.
func (q *TCPRequest) Cancel() {
	proto := ipv4.ProtocolNumber
	if q.Dst.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	for !q.accepted.Load() {
		if ep := q.s.ns.FindTransportEndpoint(proto, tcp.ProtocolNumber, q.id, nicID); ep != nil {
			ep.Abort()
			return
		}
		time.Sleep(time.Millisecond) // not registered yet
	}
}

// DialTCP connects to the guest at dst from src, which need not be ours: it is the client's own address. It fails with
// a syscall.Errno: ECONNREFUSED when the guest answers with a reset, ETIMEDOUT, EHOSTUNREACH, EADDRINUSE when the
// same 4-tuple is in use, ENETDOWN when the stack is closed; or with the error of ctx.
func (s *Stack) DialTCP(ctx context.Context, src, dst netip.AddrPort) (*Conn, error) {
	if !s.enter() {
		return nil, syscall.ENETDOWN
	}
	defer s.wg.Done()
	proto := ipv4.ProtocolNumber
	if dst.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	c := &Conn{Flow: Flow{Src: src, Dst: dst}}
	if p := s.portFor(dst.Addr()); p != nil {
		c.Endpoint = p.endpoint
	}
	ep, terr := s.ns.NewEndpoint(tcp.ProtocolNumber, proto, &c.wq)
	if terr != nil {
		return nil, Errno(terr)
	}
	fail := func(err error) (*Conn, error) {
		ep.Abort()
		return nil, err
	}
	// One client port may reach several published ports at once: the local end is shared, the 4-tuple is not.
	ep.SocketOptions().SetReusePort(true)
	if terr = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: fromNetip(src.Addr()), Port: src.Port()}); terr != nil {
		return fail(Errno(terr))
	}
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
			terr = &tcpip.ErrPortInUse{} // any address is good with spoofing on: it is the 4-tuple that is not
		}
		return fail(Errno(terr))
	}
	c.init(ep)
	return c, nil
}

// Errno translates an error of netstack into the errno a Linux socket would give.
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
