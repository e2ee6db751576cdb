package policy

import (
	"net/netip"
	"slices"
)

// HostLoopback lists the ports on the host's loopback that the guest may reach through the gateway. The zero value lists none.
type HostLoopback struct {
	All   bool
	Ports []uint16 // for both TCP and UDP
}

// Config describes the guest's network. All fields are optional; an address or prefix that is not set matches nothing.
type Config struct {
	// Gateway4 and Gateway6 are the addresses that represent the host.
	Gateway4, Gateway6 netip.Addr
	// Guest4 and Guest6 are the guest's first addresses.
	Guest4, Guest6 netip.Addr
	// Subnet4 and Subnet6 are the link's prefixes. Except for the gateway's, addresses in them are unreachable. Do not set them if
	// the guest has an address of the host's own subnet, in which other hosts exist.
	Subnet4, Subnet6 netip.Prefix
	// Sources are the addresses the guest may send from. Empty means, for each family, the subnet or else the guest's address; and
	// fe80::/10 if there is any IPv6.
	Sources []netip.Prefix
	// Special are addresses with a target of their own. It takes precedence over all later checks, and may be set for a gateway's
	// address too.
	Special []Special
	// HostLoopback opens ports of the host's loopback on the gateway's addresses and on Special addresses with ToLoopback.
	HostLoopback HostLoopback
	// Host4 and Host6 are addresses of the host on its network. What the guest sends to any other port of those addresses goes
	// there, so that it reaches what another machine would reach. An address of a closed kind counts as not set.
	Host4, Host6 netip.Addr
	// AllowMetadata opens the metadata services of clouds, which give the host's credentials to any client.
	AllowMetadata bool
	// IPv4Off and IPv6Off close an address family.
	IPv4Off, IPv6Off bool
	// Off are protocols whose packets are dropped without an answer.
	Off []Proto
}

// Special sets the target of the address Addr.
type Special struct {
	Addr netip.Addr
	To   Target
	// Host is the address that ToHost dials.
	Host netip.Addr
}

// Target is what happens to flows to a Special address.
type Target uint8

const (
	ToRefuse   Target = iota // refused, as by a host on which nothing listens
	ToLoopback               // the host itself, as for a gateway's address: its loopback on the ports of HostLoopback
	ToHost                   // Special.Host, on every port, even if it is of a closed kind
	ToNetwork                // the address itself, subject to the checks for ordinary destinations
	ToNoRoute                // answered with "no route to network"
	ToDrop                   // dropped without an answer
)

// Policy is a compiled Config. It is immutable; Judge is safe for concurrent use and does not allocate.
type Policy struct {
	gateway4, gateway6 netip.Addr
	subnet4, subnet6   netip.Prefix
	broadcast4         netip.Addr // the zero Addr when subnet4 has none
	sources            []netip.Prefix
	loopbackAll        bool
	loopbackPorts      []uint16 // sorted
	host4, host6       netip.Addr
	allowMetadata      bool
	off4, off6         bool
	off                []Proto
	special            map[netip.Addr]Special
}

var linkLocal6 = netip.MustParsePrefix("fe80::/10")

// New compiles c; it keeps no reference to c's slices.
func New(c Config) *Policy {
	p := &Policy{
		gateway4:      clean(c.Gateway4),
		gateway6:      clean(c.Gateway6),
		subnet4:       c.Subnet4.Masked(),
		subnet6:       c.Subnet6.Masked(),
		loopbackAll:   c.HostLoopback.All,
		loopbackPorts: slices.Sorted(slices.Values(c.HostLoopback.Ports)),
		allowMetadata: c.AllowMetadata,
		off4:          c.IPv4Off,
		off6:          c.IPv6Off,
	}
	p.off = slices.Clone(c.Off)
	if len(c.Special) > 0 {
		p.special = make(map[netip.Addr]Special, len(c.Special))
	}
	for _, s := range c.Special {
		s.Addr, s.Host = clean(s.Addr), clean(s.Host)
		if s.Addr.IsValid() {
			p.special[s.Addr] = s
		}
	}
	if p.subnet4.IsValid() {
		p.broadcast4 = broadcast(p.subnet4)
	}
	for _, s := range c.Sources {
		if s.IsValid() {
			p.sources = append(p.sources, s.Masked())
		}
	}
	p.host4, p.host6 = p.hostAddress(c.Host4, false), p.hostAddress(c.Host6, true)
	if len(p.sources) == 0 {
		p.sources = defaultSources(p.subnet4, p.subnet6, clean(c.Guest4), clean(c.Guest6))
	}
	return p
}

// hostAddress is an address of the host that may be dialled for the guest, or the zero value. The loopback stays closed even if the
// caller takes one of its addresses for one of the network.
func (p *Policy) hostAddress(a netip.Addr, v6 bool) netip.Addr {
	a = a.WithZone("")
	if !a.IsValid() || a.Is6() != v6 || isMetadata(a) {
		return netip.Addr{}
	}
	if _, closed := p.closed(a); closed {
		return netip.Addr{}
	}
	return a
}

func defaultSources(subnet4, subnet6 netip.Prefix, guest4, guest6 netip.Addr) (out []netip.Prefix) {
	add := func(subnet netip.Prefix, guest netip.Addr) bool {
		switch {
		case subnet.IsValid():
			out = append(out, subnet)
		case guest.IsValid():
			out = append(out, netip.PrefixFrom(guest, guest.BitLen()))
		default:
			return false
		}
		return true
	}
	add(subnet4, guest4)
	if add(subnet6, guest6) {
		out = append(out, linkLocal6)
	}
	return out
}

// Judge decides about a flow from src to dst, which are the addresses in the guest's packets. They should not have been
// unmapped: an IPv4-mapped address is closed either way, but the Reason would be a different one. For ICMP and ICMPv6 the ports
// are ignored, and passed on in Verdict.Dst.
func (p *Policy) Judge(proto Proto, src, dst netip.AddrPort) Verdict {
	sa, da := src.Addr().WithZone(""), dst.Addr().WithZone("")
	if !sa.IsValid() || !da.IsValid() || sa.Is4() != da.Is4() {
		return no(Drop, Malformed)
	}
	if da.Is4() && p.off4 || da.Is6() && p.off6 {
		return no(Unreachable, FamilyOff)
	}
	if !p.ownSource(sa) {
		return no(Drop, SpoofedSource)
	}
	if slices.Contains(p.off, proto) {
		return no(Drop, ProtocolOff)
	}
	if s, ok := p.special[da]; ok && s.To != ToNetwork {
		return p.judgeSpecial(s, proto, src.Port(), dst.Port())
	} else if ok {
		return p.judgeNetwork(proto, src.Port(), netip.AddrPortFrom(da, dst.Port()))
	}
	// The address is checked before the protocol, because packets to a multicast group must never be answered.
	if da == p.gateway4 || da == p.gateway6 {
		return p.judgeGateway(proto, src.Port(), dst.Port(), da.Is4())
	}
	return p.judgeNetwork(proto, src.Port(), netip.AddrPortFrom(da, dst.Port()))
}

// judgeNetwork decides about a destination that is neither special nor a gateway.
func (p *Policy) judgeNetwork(proto Proto, sport uint16, dst netip.AddrPort) Verdict {
	da := dst.Addr()
	if da.IsMulticast() {
		return judgeGroup(proto, sport, dst)
	}
	if v, closed := p.closed(da); closed {
		return v
	}
	if p.subnet4.Contains(da) || p.subnet6.Contains(da) {
		return no(Unreachable, OwnSubnet)
	}
	if v, bad := checkProto(proto, sport, dst.Port(), da.Is4()); bad {
		return v
	}
	return Verdict{Action: Allow, Dst: dst}
}

func (p *Policy) judgeSpecial(s Special, proto Proto, sport, dport uint16) Verdict {
	switch s.To {
	case ToLoopback:
		return p.judgeGateway(proto, sport, dport, s.Addr.Is4())
	case ToDrop:
		return no(Drop, SpecialClosed)
	case ToNoRoute:
		return no(NoRoute, SpecialClosed)
	case ToHost:
		if v, bad := checkProto(proto, sport, dport, s.Addr.Is4()); bad {
			return v
		}
		if s.Host.Is4() == s.Addr.Is4() || proto == TCP || proto == UDP {
			return Verdict{Action: Allow, Dst: netip.AddrPortFrom(s.Host, dport)}
		}
	}
	return no(Refuse, SpecialClosed)
}

// judgeGateway decides about flows to the host itself: to its loopback on the ports that are named, and on the others to its address
// on the network. It is the only function that returns a loopback address as Dst, except for a Special with a loopback address as
// Host.
func (p *Policy) judgeGateway(proto Proto, sport, dport uint16, is4 bool) Verdict {
	if v, bad := checkProto(proto, sport, dport, is4); bad {
		return v
	}
	if proto != TCP && proto != UDP {
		return no(Refuse, GatewayClosed)
	}
	at, other := loopback4, netip.IPv6Loopback()
	if _, named := slices.BinarySearch(p.loopbackPorts, dport); !named && !p.loopbackAll {
		at, other = p.host4, p.host6
	}
	if !is4 {
		at, other = other, at
	}
	if !at.IsValid() {
		at, other = other, at
	}
	if !at.IsValid() {
		return no(Refuse, HostLoopbackClosed)
	}
	v := Verdict{Action: Allow, Gateway: true, Dst: netip.AddrPortFrom(at, dport)}
	if other.IsValid() {
		v.Alt = netip.AddrPortFrom(other, dport)
	}
	return v
}

// ownSource reports whether the guest may send from a. The gateway's address and the broadcast address are in the subnet but
// are not valid sources.
func (p *Policy) ownSource(a netip.Addr) bool {
	if a == p.gateway4 || a == p.gateway6 || a == p.broadcast4 || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	for _, s := range p.sources {
		if s.Contains(a) {
			return true
		}
	}
	return false
}

// closed decides by the kind of address alone.
func (p *Policy) closed(a netip.Addr) (v Verdict, closed bool) {
	if isMetadata(a) {
		if p.allowMetadata {
			return Verdict{}, false
		}
		return no(Prohibit, Metadata), true
	}
	if a.Is4() {
		if a == p.broadcast4 {
			return no(Drop, Broadcast), true
		}
		k := kind4(a.As4())
		return no(k.action(), k.reason()), k != kindOrdinary
	}
	return p.closed6(a)
}

func checkProto(proto Proto, sport, dport uint16, is4 bool) (v Verdict, bad bool) {
	switch {
	case proto == TCP || proto == UDP:
		if sport == 0 {
			return no(Drop, PortZero), true
		}
		if dport == 0 {
			return no(Refuse, PortZero), true
		}
		return Verdict{}, false
	case proto == ICMP && is4, proto == ICMPv6 && !is4:
		return Verdict{}, false
	}
	return no(Prohibit, Protocol), true
}

func no(a Action, r Reason) Verdict { return Verdict{Action: a, Reason: r} }

func clean(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// broadcast returns the last address of an IPv4 subnet, or the zero Addr for a /31 or /32, which have none (RFC 3021).
func broadcast(s netip.Prefix) netip.Addr {
	if !s.Addr().Is4() || s.Bits() > 30 {
		return netip.Addr{}
	}
	b := s.Addr().As4()
	for i := s.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
