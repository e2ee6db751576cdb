package policy

import "net/netip"

// The groups of the Local Network Control Block, 224.0.0.0/24 (RFC 5771, 4), by which programs look for each other. The others
// of it are those to which every host or router belongs, and protocols of routers.
var (
	mdns4  = netip.AddrFrom4([4]byte{224, 0, 0, 251}) // RFC 6762
	llmnr4 = netip.AddrFrom4([4]byte{224, 0, 0, 252}) // RFC 4795
)

// judgeGroup decides about a multicast group. Datagrams to groups of applications leave the host; those to groups that every host
// belongs to, and of the protocols of routers, do not, nor does anything that is not UDP. Nothing is answered (RFC 1122, 3.2.2).
func judgeGroup(proto Proto, sport uint16, dst netip.AddrPort) Verdict {
	switch {
	case proto != UDP, closedGroup(dst.Addr()):
		return no(Drop, Multicast)
	case sport == 0, dst.Port() == 0:
		return no(Drop, PortZero)
	}
	return Verdict{Action: Allow, Dst: dst}
}

func closedGroup(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return b[0] == 224 && b[1] == 0 && b[2] == 0 && a != mdns4 && a != llmnr4
	}
	b := a.As16()
	scope, permanent := b[1]&0x0f, b[1]>>4 == 0
	switch scope {
	case 0x0, 0x1, 0xf: // reserved, interface-local, reserved (RFC 4291, 2.7; RFC 7346)
		return true
	}
	if !permanent { // any group identifier may be an application's
		return false
	}
	if [9]byte(b[2:11]) != [9]byte{} {
		return false
	}
	if b[11] != 0 {
		return b[11] <= 2 && b[12] == 0xff // solicited-node (RFC 4291, 2.7.1), node information queries (RFC 4620, 5)
	}
	switch group := uint32(b[12])<<24 | uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15]); group {
	case 0xc, 0xf: // SSDP, UPnP
		return false
	case 0x1_0002, 0x1_0003: // DHCPv6 (RFC 8415, 7.1), but for LLMNR with a scope of the link
		return group != 0x1_0003 || scope != 2
	default:
		return group <= 0x1f // all nodes, all routers, and the protocols of routers
	}
}
