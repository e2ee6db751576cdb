package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/tap"
)

// IP protocol numbers handled here (IANA). Others are answered with "protocol unreachable".
const (
	protoICMP   = 1
	protoIGMP   = 2
	protoTCP    = 6
	protoUDP    = 17
	protoFrag6  = 44
	protoICMPv6 = 58
)

// packet is one IP packet whose IP header has been validated.
type packet struct {
	frame    *tap.Frame
	ip       []byte // the packet, IP header included, without padding of the frame
	payload  []byte // what follows the IP header
	src, dst netip.Addr
	proto    uint8
	ttl, tos uint8
	df       bool
	unicast  bool // the frame's destination is a unicast link address
	hdrLen   int
}

func (p *port) receive4(f *tap.Frame, b []byte, r *rx) (taken bool) {
	s := p.s
	ip := b[ethLen:]
	if len(ip) < header.IPv4MinimumSize {
		s.stats.drop(DropShort)
		return false
	}
	ihl := int(ip[0]&15) * 4
	total := int(binary.BigEndian.Uint16(ip[2:4]))
	if ip[0]>>4 != 4 || ihl < header.IPv4MinimumSize || total < ihl || total > len(ip) || checksum.Checksum(ip[:ihl], 0) != 0xffff {
		s.stats.drop(DropIPHeader)
		return false
	}
	ip = ip[:total]
	flags := binary.BigEndian.Uint16(ip[6:8])
	k := packet{
		frame: f, ip: ip, payload: ip[ihl:], hdrLen: ihl, proto: ip[9], ttl: ip[8], tos: ip[1], df: flags&0x4000 != 0,
		src: netip.AddrFrom4([4]byte(ip[12:16])), dst: netip.AddrFrom4([4]byte(ip[16:20])),
		unicast: b[0]&1 == 0,
	}
	if !validSource(k.src) {
		s.stats.drop(DropSource)
		return false
	}
	p.learn(k.src, b[6:12])
	if flags&0x3fff != 0 { // more-fragments flag or fragment offset
		return p.receiveFragment(&k, r, header.IPv4ProtocolNumber)
	}
	return p.dispatch(&k, r)
}

func (p *port) receive6(f *tap.Frame, b []byte, r *rx) (taken bool) {
	s := p.s
	ip := b[ethLen:]
	if len(ip) < header.IPv6MinimumSize {
		s.stats.drop(DropShort)
		return false
	}
	total := header.IPv6MinimumSize + int(binary.BigEndian.Uint16(ip[4:6]))
	if ip[0]>>4 != 6 || total > len(ip) {
		s.stats.drop(DropIPHeader)
		return false
	}
	ip = ip[:total]
	k := packet{
		frame: f, ip: ip, payload: ip[header.IPv6MinimumSize:], hdrLen: header.IPv6MinimumSize, proto: ip[6], ttl: ip[7],
		tos: ip[0]<<4 | ip[1]>>4, df: true,
		src: netip.AddrFrom16([16]byte(ip[8:24])), dst: netip.AddrFrom16([16]byte(ip[24:40])),
		unicast: b[0]&1 == 0,
	}
	if !validSource(k.src) {
		s.stats.drop(DropSource)
		return false
	}
	p.learn(k.src, b[6:12])
	switch k.proto {
	case protoTCP, protoUDP, protoICMPv6:
		return p.dispatch(&k, r)
	case protoFrag6:
		if len(k.payload) < fragHdrLen {
			s.stats.drop(DropShort)
			return false
		}
		k.proto = k.payload[0]
		return p.receiveFragment(&k, r, header.IPv6ProtocolNumber)
	case 0, 43, 59, 60: // hop-by-hop options, routing, no next header, destination options
		if k.listenerReport() {
			s.stats.groupReports.Add(1)
		} else {
			s.stats.drop(DropIPOptions)
		}
		return false
	}
	return p.dispatch(&k, r)
}

// listenerReport reports whether an IPv6 packet with hop-by-hop options is multicast listener discovery, to be read by multicast
// routers (RFC 2710, RFC 3810). Every kernel sends reports when an interface comes up.
func (k *packet) listenerReport() bool {
	if k.proto != 0 || len(k.payload) < 8 || k.payload[0] != protoICMPv6 || !k.dst.IsMulticast() {
		return false
	}
	icmp := k.payload[min(len(k.payload), 8*(int(k.payload[1])+1)):]
	return len(icmp) > 0 && (icmp[0] >= icmp6ListenerQuery && icmp[0] <= icmp6ListenerDone || icmp[0] == icmp6ListenerReport2)
}

// Types of multicast listener discovery: query, report (131), done, and the report of version 2 (IANA).
const (
	icmp6ListenerQuery   = 130
	icmp6ListenerDone    = 132
	icmp6ListenerReport2 = 143
)

// receiveFragment passes a fragment to netstack, which reassembles packets within its memory limit. Fragments of other
// protocols than those handled here are dropped, because netstack might answer them by itself.
func (p *port) receiveFragment(k *packet, r *rx, n tcpip.NetworkProtocolNumber) (taken bool) {
	known := k.proto == protoTCP || k.proto == protoUDP || k.proto == protoICMP && k.dst.Is4() || k.proto == protoICMPv6 && k.dst.Is6()
	switch {
	case !known:
		p.s.stats.drop(DropFragment)
	case nonUnicast(k.dst) || !k.unicast:
		p.s.stats.drop(DropDestination)
	case k.src.IsUnspecified():
		p.s.stats.drop(DropSource)
	default:
		p.flush() // keeps the order of datagrams within the flow
		return p.deliver(k.frame, r, n, 0, len(k.ip))
	}
	return false
}

// dispatch handles an unfragmented packet according to its protocol.
func (p *port) dispatch(k *packet, r *rx) (taken bool) {
	s := p.s
	switch k.proto {
	case protoTCP:
		if len(k.payload) < header.TCPMinimumSize {
			s.stats.drop(DropTransport)
			return false
		}
		off := int(k.payload[12]>>4) * 4
		if off < header.TCPMinimumSize || off > len(k.payload) {
			s.stats.drop(DropTransport)
			return false
		}
		if nonUnicast(k.dst) || nonUnicast(k.src) || !k.unicast {
			s.stats.drop(DropDestination)
			return false
		}
		if !k.checksumOK() {
			s.stats.drop(DropChecksum)
			return false
		}
		if k.isSYN() && !s.admitSYN(netip.AddrPortFrom(k.dst, binary.BigEndian.Uint16(k.payload[2:]))) {
			return false
		}
		if p.intercept(k, r) {
			return false
		}
		if f := header.TCPFlags(k.payload[13]); f.Contains(header.TCPFlagUrg) || f.Contains(header.TCPFlagSyn|header.TCPFlagAck) {
			s.noteSegment(k)
		}
		n := netProto(k.dst)
		if p.deferSYN(k, n) {
			return false
		}
		return p.deliver(k.frame, r, n, k.hdrLen+off, len(k.ip))
	case protoUDP:
		p.receiveUDP(k, true)
		return false
	case protoICMP:
		p.flush() // so that earlier datagrams are processed before an echo reply is sent; ICMP is rare
		if k.dst.Is4() {
			return p.receiveICMP4(k, r)
		}
	case protoICMPv6:
		p.flush()
		if k.dst.Is6() {
			return p.receiveICMP6(k, r)
		}
	}
	if k.proto == protoIGMP && k.dst.IsMulticast() {
		s.stats.groupReports.Add(1)
		return false
	}
	s.stats.drop(DropProtocol)
	if k.answerable() {
		// Code 2 is "protocol unreachable". Its IPv6 counterpart is a parameter problem that points at the next-header field.
		if k.dst.Is4() {
			p.writeError(k.ip, ICMPError{Type: icmp4Unreachable, Code: 2})
		} else {
			p.writeError(k.ip, ICMPError{Type: icmp6Parameter, Code: 1, MTU: 6})
		}
	}
	return false
}

// ttlTOS returns TTL and TOS, or hop limit and traffic class, of an IP header.
func ttlTOS(ip []byte) (ttl, tos uint8) {
	if ip[0]>>4 == 4 {
		return ip[8], ip[1]
	}
	return ip[7], ip[0]<<4 | ip[1]>>4
}

// netProto returns netstack's number of the network protocol of a.
func netProto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is6() {
		return header.IPv6ProtocolNumber
	}
	return header.IPv4ProtocolNumber
}

// answerable reports whether an ICMP error may be sent about the packet: not if it was multicast or broadcast, or if its source
// does not identify a single host (RFC 1122 3.2.2, RFC 4443 2.4).
func (k *packet) answerable() bool {
	return k.unicast && !nonUnicast(k.dst) && !nonUnicast(k.src)
}

// validSource reports whether a packet on the link may have the source address a. The unspecified address is used by a host
// that does not have an address yet.
func validSource(a netip.Addr) bool { return a.IsUnspecified() || !nonUnicast(a) }

// nonUnicast reports whether a is unspecified, loopback, multicast, broadcast or reserved, so that no TCP connection to or from
// it can exist on a link. Policy is decided elsewhere; this check keeps netstack from answering in the name of such an address.
func nonUnicast(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return b[0] == 0 || b[0] == 127 || b[0] >= 224
	}
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4In6()
}

// checksumOK verifies the transport checksum of TCP, UDP and ICMPv6. A frame marked as having a partial checksum (the guest's
// kernel leaves its computation to the device) is accepted: it never left this machine, so it cannot have been corrupted.
func (k *packet) checksumOK() bool {
	if k.frame.Header.Flags&(tap.FlagNeedsCsum|tap.FlagDataValid) != 0 {
		return true
	}
	if k.proto == protoUDP && k.dst.Is4() && binary.BigEndian.Uint16(k.payload[udpCsumOffset:]) == 0 {
		return true // RFC 768: no checksum
	}
	sum := pseudoSumAddr(k.src, k.dst, k.proto, len(k.payload))
	return checksum.Checksum(k.payload, sum) == 0xffff
}

func pseudoSumAddr(src, dst netip.Addr, proto uint8, size int) uint16 {
	var sum uint16
	if src.Is4() {
		s, d := src.As4(), dst.As4()
		sum = checksum.Checksum(d[:], checksum.Checksum(s[:], 0))
	} else {
		s, d := src.As16(), dst.As16()
		sum = checksum.Checksum(d[:], checksum.Checksum(s[:], 0))
	}
	sum = checksum.Combine(sum, uint16(proto))
	sum = checksum.Combine(sum, uint16(size>>16))
	return checksum.Combine(sum, uint16(size))
}
