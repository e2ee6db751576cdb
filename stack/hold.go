package stack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	// holdStep and holdSteps: netstack ends a connection within a millisecond of its last segment, unless every processor is
	// busy. After all of them the request takes its chance.
	holdStep  = time.Millisecond
	holdSteps = 30
	// holdMost requests are held at once: each is a goroutine and a frame. Who reuses more ports than that at the same
	// moment has some of them refused.
	holdMost = 256
)

// hold keeps a connection request back while the connection that had the same ends is not gone. A client that resets a
// connection and takes its port again at once is right in doing so, but netstack ends connections on goroutines of its
// own: the request would join the queue of the dying connection, and be answered with a reset.
func (p *port) hold(k *packet, n tcpip.NetworkProtocolNumber) (held bool) {
	if header.TCPFlags(k.payload[13])&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	if ethLen+len(k.ip) > rxViewSize { // no request is as large as that
		return false
	}
	s := p.s
	id := gstack.TransportEndpointID{
		LocalPort: binary.BigEndian.Uint16(k.payload[2:]), LocalAddress: tcpip.AddrFromSlice(k.dst.AsSlice()),
		RemotePort: binary.BigEndian.Uint16(k.payload), RemoteAddress: tcpip.AddrFromSlice(k.src.AsSlice()),
	}
	if !s.dying(n, id) {
		return false
	}
	if s.held.Add(1) > holdMost {
		s.held.Add(-1)
		return false
	}
	ip := buffer.NewViewWithData(k.ip)
	s.wg.Go(func() {
		defer s.held.Add(-1)
		defer ip.Release()
		defer func() {
			if e := recover(); e != nil {
				s.panicked(e)
			}
		}()
		for range holdSteps {
			select {
			case <-time.After(holdStep):
			case <-s.done:
				return
			}
			if !s.dying(n, id) {
				break
			}
		}
		s.deliverIP(n, ip.Clone())
	})
	return true
}

// dying says whether a connection with these ends is there that a new one should wait for. One that lingers in TIME-WAIT
// gives way by itself (RFC 1122 4.2.2.13), and one that is being set up knows what to do with a request sent again.
func (s *Stack) dying(n tcpip.NetworkProtocolNumber, id gstack.TransportEndpointID) bool {
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

// deliverIP hands an IP packet to netstack, and takes it over.
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
