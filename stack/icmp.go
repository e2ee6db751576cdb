package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"rootlessnet/tap"
)

// ICMP types used here (RFC 792, RFC 4443, RFC 4861).
const (
	icmp4EchoReply   = 0
	icmp4Unreachable = 3
	icmp4Echo        = 8
	icmp4Exceeded    = 11
	icmp4Parameter   = 12

	icmp6Unreachable = 1
	icmp6TooBig      = 2
	icmp6Exceeded    = 3
	icmp6Parameter   = 4
	icmp6Echo        = 128
	icmp6EchoReply   = 129

	icmpLen = 8 // type, code, checksum and four bytes that depend on the type

	// quote4 and quote6 are how many bytes of the packet an error message quotes, IP header included: the message may have 576
	// bytes (RFC 1812 4.3.2.3) and 1280 bytes (RFC 4443 2.4 c).
	quote4 = 576 - header.IPv4MinimumSize - icmpLen
	quote6 = 1280 - header.IPv6MinimumSize - icmpLen
)

func (p *port) receiveICMP4(k *packet, r *rx) (taken bool) {
	s := p.s
	m := k.payload
	if len(m) < icmpLen {
		s.stats.drop(DropTransport)
		return false
	}
	if checksum.Checksum(m, 0) != 0xffff {
		s.stats.drop(DropChecksum)
		return false
	}
	switch m[0] {
	case icmp4Echo:
		p.receiveEcho(k)
		return false
	case icmp4Unreachable, icmp4Exceeded, icmp4Parameter:
		return p.receiveError(k, r, m[icmpLen:])
	}
	s.stats.drop(DropICMP)
	return false
}

func (p *port) receiveICMP6(k *packet, r *rx) (taken bool) {
	s := p.s
	m := k.payload
	if len(m) < icmpLen {
		s.stats.drop(DropTransport)
		return false
	}
	if !k.checksumOK() {
		s.stats.drop(DropChecksum)
		return false
	}
	switch t := m[0]; {
	case t == icmp6Echo:
		p.receiveEcho(k)
	case t >= icmp6Unreachable && t <= icmp6Parameter:
		return p.receiveError(k, r, m[icmpLen:])
	case t == ndpRouterSolicit || t == ndpNeighborSolicit || t == ndpNeighborAdvert:
		p.receiveNDP(k)
	default: // such as multicast listener reports
		s.stats.drop(DropICMP)
	}
	return false
}

func (p *port) receiveEcho(k *packet) {
	s := p.s
	if k.src.IsUnspecified() {
		s.stats.drop(DropSource)
		return
	}
	e := Echo{
		Endpoint: p.endpoint, Src: k.src, Dst: k.dst,
		ID: binary.BigEndian.Uint16(k.payload[4:6]), Seq: binary.BigEndian.Uint16(k.payload[6:8]),
		Payload: k.payload[icmpLen:], TTL: k.ttl, TOS: k.tos, DF: k.df,
	}
	if s.answersPing(k.dst) {
		e.Src, e.Dst, e.TTL = k.dst, k.src, 0
		_ = s.WriteEchoReply(&e)
		return
	}
	if s.handler != nil {
		s.handler.HandleEcho(&e)
	}
}

// deliverReassembledICMP is called by netstack with ICMP messages that it has reassembled. It always returns true, which means
// handled: otherwise netstack in promiscuous mode would answer an echo request to any address by itself.
func (s *Stack) deliverReassembledICMP(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	v := pkt.ToView()
	defer v.Release()
	ip := pkt.NetworkHeader().Slice()
	off := len(pkt.LinkHeader().Slice()) + len(ip)
	whole := v.AsSlice()
	k := packet{frame: &tap.Frame{}, src: toNetip(id.RemoteAddress), dst: toNetip(id.LocalAddress)}
	p := s.portFor(k.src)
	if p == nil || len(whole) < off+icmpLen {
		s.stats.drop(DropICMP)
		return true
	}
	k.payload = whole[off:]
	echo := k.payload[0] == icmp4Echo && checksum.Checksum(k.payload, 0) == 0xffff
	k.ttl, k.tos = ttlTOS(ip)
	if k.dst.Is4() {
		k.proto = protoICMP
	} else {
		k.proto = protoICMPv6
		echo = k.payload[0] == icmp6Echo && k.checksumOK()
	}
	if !echo {
		s.stats.drop(DropICMP)
		return true
	}
	p.receiveEcho(&k)
	return true
}

// receiveError handles the guest's ICMP error about a packet of the gateway, which it quotes: errors about UDP go to the
// handler, errors about TCP to netstack.
func (p *port) receiveError(k *packet, r *rx, quoted []byte) (taken bool) {
	s := p.s
	var flow Flow
	var proto uint8
	var transport []byte
	if k.dst.Is4() {
		if len(quoted) < header.IPv4MinimumSize {
			s.stats.drop(DropICMP)
			return false
		}
		ihl := int(quoted[0]&15) * 4
		later := binary.BigEndian.Uint16(quoted[6:8])&0x1fff != 0 // a fragment, which does not contain the ports
		if quoted[0]>>4 != 4 || ihl < header.IPv4MinimumSize || len(quoted) < ihl+icmpLen || later {
			s.stats.drop(DropICMP)
			return false
		}
		proto, transport = quoted[9], quoted[ihl:]
		flow.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(quoted[12:16])), 0)
		flow.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(quoted[16:20])), 0)
	} else {
		if len(quoted) < header.IPv6MinimumSize+icmpLen || quoted[0]>>4 != 6 {
			s.stats.drop(DropICMP)
			return false
		}
		proto, transport = quoted[6], quoted[header.IPv6MinimumSize:]
		flow.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(quoted[8:24])), 0)
		flow.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(quoted[24:40])), 0)
	}
	switch proto {
	case protoTCP:
		n := header.IPv4ProtocolNumber
		if k.dst.Is6() {
			n = header.IPv6ProtocolNumber
		}
		return p.deliver(k.frame, r, n, k.hdrLen, len(k.ip))
	case protoUDP:
		flow.Src = netip.AddrPortFrom(flow.Src.Addr(), binary.BigEndian.Uint16(transport[0:2]))
		flow.Dst = netip.AddrPortFrom(flow.Dst.Addr(), binary.BigEndian.Uint16(transport[2:4]))
		if s.handler != nil {
			s.handler.HandleUDPError(flow, ICMPError{From: k.src, Type: k.payload[0], Code: k.payload[1], MTU: binary.BigEndian.Uint32(k.payload[4:8])})
		}
		return false
	}
	s.stats.drop(DropICMP)
	return false
}

// WriteEchoReply sends an echo reply to the guest at e.Dst from the remote e.Src. A reply larger than the MTU is
// fragmented.
func (s *Stack) WriteEchoReply(e *Echo) error {
	t := uint8(icmp6EchoReply)
	if e.Dst.Is4() {
		t = icmp4EchoReply
	}
	m := make([]byte, icmpLen+len(e.Payload))
	m[0] = t
	binary.BigEndian.PutUint16(m[4:], e.ID)
	binary.BigEndian.PutUint16(m[6:], e.Seq)
	copy(m[icmpLen:], e.Payload)
	return s.writeICMP(e.Src, e.Dst, e.TTL, e.TOS, m)
}

// WriteEchoError sends the guest an ICMP error about its echo request req. It returns an error if that cannot be sent.
func (s *Stack) WriteEchoError(req *Echo, e ICMPError) error {
	m := make([]byte, icmpLen+min(len(req.Payload), quote6))
	if req.Dst.Is4() {
		m[0] = icmp4Echo
	} else {
		m[0] = icmp6Echo
	}
	binary.BigEndian.PutUint16(m[4:], req.ID)
	binary.BigEndian.PutUint16(m[6:], req.Seq)
	copy(m[icmpLen:], req.Payload)
	proto := uint8(protoICMPv6)
	if req.Dst.Is4() {
		proto = protoICMP
		binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, 0))
	} else {
		binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, pseudoSumAddr(req.Src, req.Dst, proto, len(m))))
	}
	return s.writeError(s.quote(req.Src, req.Dst, proto, req.TTL, icmpLen+len(req.Payload), m), e)
}

// WriteUDPError sends the guest an ICMP error about its datagram. flow.Src is the guest's end; payload is the datagram's
// payload or its beginning: the guest's kernel needs the ports only, but programs can read the rest. It returns an error if
// that cannot be sent.
func (s *Stack) WriteUDPError(flow Flow, payload []byte, e ICMPError) error {
	u := make([]byte, udpLen+min(len(payload), quote6))
	binary.BigEndian.PutUint16(u[0:], flow.Src.Port())
	binary.BigEndian.PutUint16(u[2:], flow.Dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(udpLen+len(payload)))
	copy(u[udpLen:], payload)
	return s.writeError(s.quote(flow.Src.Addr(), flow.Dst.Addr(), protoUDP, 0, udpLen+len(payload), u), e)
}

// writeTCPError sends the guest an ICMP error about its SYN. seq is that of the SYN: Linux ignores an error whose sequence
// number is outside the window (tcp_v4_err in net/ipv4/tcp_ipv4.c).
func (s *Stack) writeTCPError(flow Flow, seq uint32, e ICMPError) error {
	t := make([]byte, header.TCPMinimumSize)
	binary.BigEndian.PutUint16(t[0:], flow.Src.Port())
	binary.BigEndian.PutUint16(t[2:], flow.Dst.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	t[12], t[13] = 5<<4, byte(header.TCPFlagSyn)
	return s.writeError(s.quote(flow.Src.Addr(), flow.Dst.Addr(), protoTCP, 0, len(t), t), e)
}

// quote rebuilds the packet of the guest that an error is about. body is the beginning of its IP payload, which had size bytes.
func (s *Stack) quote(src, dst netip.Addr, proto, ttl uint8, size int, body []byte) []byte {
	if dst.Is4() {
		b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(body))
		s.ipv4Header(b, src, dst, proto, ttl, 0, min(size, 65535-header.IPv4MinimumSize), flagDF)
		return append(b, body...)
	}
	b := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(body))
	ipv6Header(b, src, dst, proto, ttl, 0, min(size, 65535))
	return append(b, body...)
}

// writeError sends the error e about the guest's packet ip to its source.
func (s *Stack) writeError(ip []byte, e ICMPError) error {
	m := make([]byte, icmpLen, icmpLen+quote6)
	m[0], m[1] = e.Type, e.Code
	if ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(m[6:], uint16(min(e.MTU, 65535))) // RFC 1191: next-hop MTU
		m = append(m, ip[:min(len(ip), quote4)]...)
		from := e.From
		if !from.Is4() {
			from = s.config().Gateway4
		}
		return s.writeICMP(from, netip.AddrFrom4([4]byte(ip[12:16])), 0, 0, m)
	}
	binary.BigEndian.PutUint32(m[4:], e.MTU)
	m = append(m, ip[:min(len(ip), quote6)]...)
	from := e.From
	if !from.Is6() || from.Is4In6() {
		from = s.config().Gateway6
	}
	return s.writeICMP(from, netip.AddrFrom16([16]byte(ip[8:24])), 0, 0, m)
}

func (p *port) writeError(ip []byte, e ICMPError) { _ = p.s.writeError(ip, e) }

// writeICMP fills in the checksum of message m and sends it, fragmented if it exceeds the MTU.
func (s *Stack) writeICMP(src, dst netip.Addr, ttl, tos uint8, m []byte) error {
	p := s.portFor(dst)
	if p == nil {
		s.stats.drop(DropNoPort)
		return ErrNoPort
	}
	m[2], m[3] = 0, 0
	proto := uint8(protoICMP)
	if dst.Is4() {
		binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, 0))
	} else {
		proto = protoICMPv6
		binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, pseudoSumAddr(src, dst, protoICMPv6, len(m))))
	}
	return s.writeFragments(p, src, dst, proto, ttl, tos, m, nil)
}
