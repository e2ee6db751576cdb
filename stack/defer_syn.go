package stack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	// deferStep times deferSteps is how long a SYN is deferred at most; then it is delivered anyway: the reset before it may have
	// been lost, and the connection answers it with a challenge (RFC 5961 4). Netstack ends a connection within a millisecond of
	// its last segment, unless all processors are busy.
	deferStep  = time.Millisecond
	deferSteps = 100
	// maxDeferred is how many SYNs are deferred at the same time, each by a goroutine that keeps a frame. Further ones are
	// delivered at once, and netstack may refuse them.
	maxDeferred = 256
)

// deferSYN delivers a SYN later, and returns true, while netstack still has a closing connection with the same 4-tuple. A
// client may reset a connection and reuse its port at once, but netstack ends connections on goroutines of its own: the SYN
// would enter the segment queue of the closing connection and be answered with a reset.
func (p *port) deferSYN(k *packet, n tcpip.NetworkProtocolNumber) (deferred bool) {
	if !k.isSYN() {
		return false
	}
	if ethLen+len(k.ip) > rxViewSize { // larger than any sensible SYN
		return false
	}
	s := p.s
	id, seq := k.endpointID(), binary.BigEndian.Uint32(k.payload[4:])
	if !s.isClosing(n, id, seq) {
		return false
	}
	if s.deferred.Add(1) > maxDeferred {
		s.deferred.Add(-1)
		return false
	}
	ip := buffer.NewViewWithData(k.ip)
	s.wg.Go(func() {
		defer s.deferred.Add(-1)
		defer ip.Release()
		defer func() {
			if e := recover(); e != nil {
				s.panicked(frameLost, e)
			}
		}()
		for range deferSteps {
			select {
			case <-time.After(deferStep):
			case <-s.done:
				return
			}
			if !s.isClosing(n, id, seq) {
				break
			}
		}
		s.deliverIP(n, ip.Clone())
	})
	return true
}

// endpointID is netstack's key of the connection that a TCP segment of the guest belongs to.
func (k *packet) endpointID() gstack.TransportEndpointID {
	return gstack.TransportEndpointID{
		LocalPort: binary.BigEndian.Uint16(k.payload[2:]), LocalAddress: tcpip.AddrFromSlice(k.dst.AsSlice()),
		RemotePort: binary.BigEndian.Uint16(k.payload), RemoteAddress: tcpip.AddrFromSlice(k.src.AsSlice()),
	}
}

// endpointOf is netstack's endpoint of the connection that a TCP segment of the guest belongs to, or nil.
func (s *Stack) endpointOf(k *packet) *tcp.Endpoint {
	ep, _ := s.ns.FindTransportEndpoint(netProto(k.dst), tcp.ProtocolNumber, k.endpointID(), nicID).(*tcp.Endpoint)
	return ep
}

// isClosing reports whether netstack has a connection with this 4-tuple that a new one, which begins with seq, should wait for. A
// connection in TIME-WAIT is replaced by netstack itself (RFC 1122 4.2.2.13). One that is being set up, from the request to the
// end of the handshake, expects its own SYN again; another one says that the guest has given it up, and the reset has not been
// processed yet or is still to come.
func (s *Stack) isClosing(n tcpip.NetworkProtocolNumber, id gstack.TransportEndpointID, seq uint32) bool {
	s.syns.mu.Lock()
	request, requested := s.syns.m[id]
	s.syns.mu.Unlock()
	if requested {
		return request.seq != seq
	}
	ep, _ := s.ns.FindTransportEndpoint(n, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	if ep == nil {
		return false
	}
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateTimeWait, tcp.StateSynRecv, tcp.StateSynSent, tcp.StateConnecting:
		return false
	}
	return true
}

// deliverIP passes an IP packet to netstack and takes over the reference to it.
func (s *Stack) deliverIP(n tcpip.NetworkProtocolNumber, ip *buffer.View) {
	d := s.link.dispatcher()
	if d == nil {
		ip.Release()
		return
	}
	var payload buffer.Buffer
	_ = payload.Append(ip)
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: payload})
	defer pkt.DecRef()
	d.DeliverNetworkPacket(n, pkt)
}
