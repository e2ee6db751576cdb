package stack

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/tap"
)

// Neighbour discovery (RFC 4861), as far as a router on a link with one guest needs it: the gateway answers solicitations for
// its own addresses, and advertises itself with the prefix, the MTU and the DNS servers (RFC 8106).
const (
	ndpRouterSolicit   = 133
	ndpRouterAdvert    = 134
	ndpNeighborSolicit = 135
	ndpNeighborAdvert  = 136

	ndpHopLimit = 255 // RFC 4861: a lower value means that the packet was forwarded, and it is discarded

	optSourceLinkAddr = 1
	optTargetLinkAddr = 2
	optPrefix         = 3
	optMTU            = 5
	optRDNSS          = 25
	optDNSSL          = 31

	// RFC 4861 6.2.1 defaults, seconds: the router lifetime is three times the longest interval between
	// advertisements.
	raInterval        = 600 * time.Second
	raRouterLifetime  = 1800
	raPrefixValid     = 86400
	raPrefixPreferred = 14400
	// raManaged is the flag for "addresses are available by DHCPv6".
	raManaged = 0x80
	// raPrefixRetired is the shortest valid lifetime in seconds that a host accepts from an RA (RFC 4862 5.5.3 e).
	raPrefixRetired = 7200
)

var allNodes = netip.MustParseAddr("ff02::1")

func (p *port) receiveNDP(k *packet) {
	s := p.s
	if k.ttl != ndpHopLimit || k.payload[1] != 0 || s.config().NoNDP {
		s.stats.drop(DropNDP)
		return
	}
	switch k.payload[0] {
	case ndpRouterSolicit:
		if s.config().NoRA {
			return
		}
		to := k.src
		if to.IsUnspecified() {
			to = allNodes
		}
		s.advertise(p, to, netip.Prefix{})
	case ndpNeighborSolicit:
		if len(k.payload) < icmpLen+16 {
			s.stats.drop(DropNDP)
			return
		}
		target := netip.AddrFrom16([16]byte(k.payload[icmpLen : icmpLen+16]))
		// A guest asks for one of its own addresses only if it has not configured it; then the host's address is meant.
		known := s.isNeighbour(target) || s.config().HostAddresses && slices.Contains(s.config().Guests, target)
		if !known || target.IsLinkLocalUnicast() && !s.isGateway(target) && !slices.Contains(s.config().Local, target) {
			return // another address of the link, for which the gateway does not answer
		}
		if k.src.IsUnspecified() && !s.isGateway(target) && !slices.Contains(s.config().Local, target) {
			return // duplicate address detection for an address the guest has generated: no other node of the link has it
		}
		s.answerSolicit(p, k.src, target)
	}
}

// answerSolicit sends a neighbour advertisement for target. A solicitation from :: is duplicate address detection (RFC 4862):
// the answer goes to all nodes, and the guest learns from it that the address is in use.
func (s *Stack) answerSolicit(p *port, to, target netip.Addr) {
	m := make([]byte, icmpLen+16+8)
	m[0] = ndpNeighborAdvert
	m[4] = 0x80 | 0x40 | 0x20 // router, solicited, override
	if to.IsUnspecified() {
		to = allNodes
		m[4] &^= 0x40
	}
	a := target.As16()
	copy(m[icmpLen:], a[:])
	o := m[icmpLen+16:]
	o[0], o[1] = optTargetLinkAddr, 1
	copy(o[2:8], s.mac[:])
	s.writeNDP(p, target, to, m)
}

// advertiseLoop sends a router advertisement at once and then at intervals until the port ends.
func (s *Stack) advertiseLoop(p *port) {
	t := time.NewTicker(raInterval)
	defer t.Stop()
	for {
		s.advertise(p, allNodes, netip.Prefix{})
		select {
		case <-t.C:
		case <-p.done:
			return
		}
	}
}

// advertise sends a router advertisement. A valid retired prefix is announced with preferred lifetime 0, so that the guest uses its
// address of that prefix for no new connection.
func (s *Stack) advertise(p *port, to netip.Addr, retired netip.Prefix) {
	m := make([]byte, 16, 160)
	m[0] = ndpRouterAdvert
	m[4] = defaultTTL
	if s.config().DHCPv6 {
		m[5] = raManaged
	}
	binary.BigEndian.PutUint16(m[6:], raRouterLifetime)
	m = append(m, optSourceLinkAddr, 1)
	m = append(m, s.mac[:]...)
	m = append(m, optMTU, 1, 0, 0)
	m = binary.BigEndian.AppendUint32(m, uint32(s.config().MTU))
	if subnet := s.config().Subnet6; subnet.IsValid() {
		m = appendPrefix(m, subnet, raPrefixValid, raPrefixPreferred)
	}
	if retired.IsValid() {
		m = appendPrefix(m, retired, raPrefixRetired, 0)
	}
	var dns []byte
	for _, d := range s.config().DNS {
		if d.Is6() {
			a := d.As16()
			dns = append(dns, a[:]...)
		}
	}
	if len(dns) > 0 {
		m = append(m, optRDNSS, byte(1+len(dns)/8), 0, 0)
		m = binary.BigEndian.AppendUint32(m, raRouterLifetime)
		m = append(m, dns...)
	}
	if names := encodeNames(s.config().SearchDomains); len(names) > 0 {
		m = append(m, optDNSSL, byte(1+len(names)/8), 0, 0)
		m = binary.BigEndian.AppendUint32(m, raRouterLifetime)
		m = append(m, names...)
	}
	s.writeNDP(p, s.router6(), to, m)
}

// router6 returns the link-local address for the guest's default route: Gateway6 if it is link-local, else the one derived from the
// link address.
func (s *Stack) router6() netip.Addr {
	if g := s.config().Gateway6; g.IsLinkLocalUnicast() {
		return g
	}
	return s.ll6
}

// appendPrefix appends a prefix information option with the on-link flag.
func appendPrefix(m []byte, prefix netip.Prefix, valid, preferred uint32) []byte {
	flags := byte(0x80) // on-link
	if prefix.Bits() == 64 {
		flags |= 0x40 // autonomous configuration: RFC 4862 5.5.3 permits no other length on Ethernet
	}
	m = append(m, optPrefix, 4, byte(prefix.Bits()), flags)
	m = binary.BigEndian.AppendUint32(m, valid)
	m = binary.BigEndian.AppendUint32(m, preferred)
	a := prefix.Masked().Addr().As16()
	return append(append(m, 0, 0, 0, 0), a[:]...)
}

// encodeNames encodes domains according to RFC 8106 5.2: uncompressed labels, padded to a multiple of eight bytes. Names that are
// invalid, or for which there is no space, are omitted.
func encodeNames(domains []string) []byte {
	var b []byte
	for _, d := range domains {
		if n := encodeName(d); len(b)+len(n) <= 240 {
			b = append(b, n...)
		}
	}
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

// encodeName encodes a domain name as labels. It returns nil if the name is invalid.
func encodeName(domain string) []byte {
	var n []byte
	for l := range strings.SplitSeq(strings.TrimSuffix(domain, "."), ".") {
		if l == "" || len(l) > 63 {
			return nil
		}
		n = append(append(n, byte(len(l))), l...)
	}
	return append(n, 0)
}

// writeNDP fills in the checksum of m and sends it with hop limit 255, to a multicast destination by Ethernet multicast (RFC
// 2464 7).
func (s *Stack) writeNDP(p *port, src, dst netip.Addr, m []byte) {
	m[2], m[3] = 0, 0
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, pseudoSumAddr(src, dst, protoICMPv6, len(m))))
	hdr := make([]byte, ethLen+header.IPv6MinimumSize)
	if dst.IsMulticast() {
		a := dst.As16()
		copy(hdr[0:6], []byte{0x33, 0x33, a[12], a[13], a[14], a[15]})
	}
	ipv6Header(hdr[ethLen:], src, dst, protoICMPv6, ndpHopLimit, 0, len(m))
	_ = p.writeFrame(tap.Header{}, header.IPv6ProtocolNumber, hdr, m)
}
