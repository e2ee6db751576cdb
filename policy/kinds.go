package policy

import "net/netip"

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

	// metadata are the addresses of cloud services that return the instance's credentials. 100.100.100.200 (Alibaba) is not listed
	// because elsewhere it is an ordinary address of the shared address space (RFC 6598), and 168.63.129.16 (Azure) because it
	// returns no credentials.
	metadata = [...]netip.Addr{
		netip.MustParseAddr("169.254.169.254"), // EC2, GCE, Azure, OpenStack and others
		netip.MustParseAddr("169.254.170.2"),   // ECS task credentials
		netip.MustParseAddr("169.254.170.23"),  // EKS pod identity
		netip.MustParseAddr("fd00:ec2::254"),   // EC2
		netip.MustParseAddr("fd00:ec2::23"),    // EKS pod identity
		netip.MustParseAddr("fd20:ce::254"),    // GCE
	}
)

func isMetadata(a netip.Addr) bool {
	for _, m := range metadata {
		if a == m {
			return true
		}
	}
	return false
}

// kind is the class of an IPv4 address according to the IANA special-purpose address registry (RFC 6890).
type kind uint8

const (
	kindOrdinary kind = iota
	kindLoopback
	kindThisHost
	kindMulticast
	kindBroadcast
	kindReserved
	kindLinkLocal
)

// kind4 returns the kind of an address. Documentation, benchmarking and shared address space count as ordinary, because they
// are used on real networks.
func kind4(b [4]byte) kind {
	switch {
	case b[0] == 127:
		return kindLoopback
	case b[0] == 0:
		return kindThisHost
	case b == [4]byte{255, 255, 255, 255}:
		return kindBroadcast
	case b[0] >= 240:
		return kindReserved
	case b[0] >= 224:
		return kindMulticast
	case b[0] == 169 && b[1] == 254:
		return kindLinkLocal
	}
	return kindOrdinary
}

func (k kind) reason() Reason {
	return [...]Reason{None, Loopback, Unspecified, Multicast, Broadcast, Reserved, LinkLocal}[k]
}

// action returns Prohibit for addresses that the guest's kernel may send to by itself, else Drop. Linux routes 240/4 and
// 169.254/16 like any other address.
func (k kind) action() Action {
	if k == kindReserved || k == kindLinkLocal {
		return Prohibit
	}
	return Drop
}

// reachesHost reports whether dialling such an address reaches the host's loopback.
func (k kind) reachesHost() bool { return k == kindLoopback || k == kindThisHost }

// closed6 decides about an IPv6 address that is not one of a metadata service.
func (p *Policy) closed6(a netip.Addr) (v Verdict, closed bool) {
	b := a.As16()
	switch {
	case a.Is4In6(): // ::ffff:0:0/96
		if kind4(tail4(b, 12)).reachesHost() {
			return no(Drop, MappedLoopback), true
		}
		return no(Drop, Mapped), true
	case a.IsLoopback():
		return no(Drop, Loopback), true
	case a.IsUnspecified():
		return no(Drop, Unspecified), true
	case b[0] == 0xff:
		return no(Drop, Multicast), true
	case b[0] == 0xfe && b[1]&0xc0 == 0x80: // fe80::/10
		return no(Prohibit, LinkLocal), true
	case b[0] == 0xfe && b[1]&0xc0 == 0xc0: // fec0::/10, site-local, deprecated by RFC 3879
		return no(Prohibit, Reserved), true
	case isNAT64WellKnown(b):
		return p.closedEmbedded(tail4(b, 12), NAT64Loopback)
	case isNAT64Local(b):
		return p.closedNAT64Local(b)
	case b[0] == 0: // the rest of ::/8, including IPv4-compatible and IPv4-translated addresses
		if [8]byte(b[:8]) == [8]byte{} && kind4(tail4(b, 12)).reachesHost() {
			return no(Drop, Loopback), true
		}
		return no(Drop, Reserved), true
	case b[0] == 0x20 && b[1] == 0x02: // 2002::/16, 6to4: the IPv4 address follows
		if v, closed := p.closedEmbedded(tail4(b, 2), TunnelLoopback); closed {
			return v, true
		}
	case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0: // 2001::/32, Teredo: server, then the client inverted
		if v, closed := p.closedEmbedded(tail4(b, 4), TunnelLoopback); closed {
			return v, true
		}
		client := tail4(b, 12)
		for i := range client {
			client[i] ^= 0xff
		}
		if v, closed := p.closedEmbedded(client, TunnelLoopback); closed {
			return v, true
		}
	}
	// An ISATAP address has the interface identifier [02]00:5efe:a.b.c.d under any prefix.
	if b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		return p.closedEmbedded(tail4(b, 12), TunnelLoopback)
	}
	return Verdict{}, false
}

// closedEmbedded decides about an IPv4 address inside an IPv6 one. A guest's kernel may send such packets, so it gets an answer.
// AllowMetadata does not apply here.
func (p *Policy) closedEmbedded(b [4]byte, loop Reason) (v Verdict, closed bool) {
	k := kind4(b)
	if k.reachesHost() {
		return no(Prohibit, loop), true
	}
	a := netip.AddrFrom4(b)
	if k != kindOrdinary || a == p.gateway4 || p.subnet4.Contains(a) {
		return no(Prohibit, Embedded), true
	}
	return Verdict{}, false
}

// isNAT64WellKnown reports whether b is in 64:ff9b::/96 (RFC 6052, 2.1).
func isNAT64WellKnown(b [16]byte) bool {
	return [12]byte(b[:12]) == [12]byte{0, 0x64, 0xff, 0x9b}
}

// isNAT64Local reports whether b is in 64:ff9b:1::/48 (RFC 8215).
func isNAT64Local(b [16]byte) bool {
	return [6]byte(b[:6]) == [6]byte{0, 0x64, 0xff, 0x9b, 0, 1}
}

// closedNAT64Local decides about an address in 64:ff9b:1::/48. The address does not show which prefix length the network uses,
// so the IPv4 address is extracted according to every layout of RFC 6052, 2.2. With the wrong layout the result is arbitrary.
// In order not to close parts of the network by accident, the layouts for /48, /56 and /64 close loopback and metadata
// addresses only, and the layout for /96 is not applied if only /64 is possible (bytes 9 to 11 in use, last three bytes zero).
// Bytes after the IPv4 address are ignored, as translators ignore them.
func (p *Policy) closedNAT64Local(b [16]byte) (v Verdict, closed bool) {
	for _, four := range [...][4]byte{
		{b[6], b[7], b[9], b[10]},   // /48
		{b[7], b[9], b[10], b[11]},  // /56
		{b[9], b[10], b[11], b[12]}, // /64
	} {
		if four[0] == 127 {
			return no(Prohibit, NAT64Loopback), true
		}
		if isMetadata(netip.AddrFrom4(four)) {
			return no(Prohibit, Embedded), true
		}
	}
	if [3]byte(b[9:12]) != [3]byte{} && [3]byte(b[13:]) == [3]byte{} {
		return Verdict{}, false
	}
	return p.closedEmbedded(tail4(b, 12), NAT64Loopback)
}

func tail4(b [16]byte, at int) [4]byte { return [4]byte(b[at : at+4]) }
