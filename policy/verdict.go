package policy

import (
	"net/netip"
	"strconv"

	"rootlessnet/flow"
)

// Proto is an IP protocol number.
type Proto = flow.Proto

// The protocols that the gateway forwards; any other is prohibited.
const (
	ICMP   = flow.ICMP
	TCP    = flow.TCP
	UDP    = flow.UDP
	ICMPv6 = flow.ICMPv6
)

// Action is what to do with a flow. The zero value is Drop, so that an uninitialised Verdict allows nothing.
type Action uint8

const (
	Drop        Action = iota // no answer
	Allow                     // dial Verdict.Dst
	Refuse                    // TCP reset; ICMP port unreachable for the others
	Prohibit                  // ICMP 3/13 (RFC 1812, 5.2.7.1), ICMPv6 1/1: communication administratively prohibited
	Unreachable               // ICMP 3/1 host unreachable, ICMPv6 1/3 address unreachable
	NoRoute                   // ICMP 3/0 net unreachable, ICMPv6 1/0 no route
)

func (a Action) String() string {
	switch a {
	case Drop:
		return "drop"
	case Allow:
		return "allow"
	case Refuse:
		return "refuse"
	case Prohibit:
		return "prohibit"
	case Unreachable:
		return "unreachable"
	case NoRoute:
		return "no-route"
	}
	return "action-" + strconv.Itoa(int(a))
}

// Reason is why a flow is not allowed. Counters by reason are arrays of NumReasons elements.
type Reason uint8

const (
	None               Reason = iota // allowed
	Malformed                        // families differ, or an address is missing
	Protocol                         // not TCP, UDP or ICMP, or ICMP of the other family
	FamilyOff                        // the address family is switched off
	PortZero                         // TCP or UDP from or to port 0
	SpoofedSource                    // the source is not an address of the guest
	Loopback                         // 127/8, ::1
	Unspecified                      // 0/8, ::
	MappedLoopback                   // IPv4-mapped form of 127/8 or 0/8
	Mapped                           // IPv4-mapped form of any other address
	NAT64Loopback                    // NAT64 form of 127/8 or 0/8
	TunnelLoopback                   // 6to4, Teredo or ISATAP form of 127/8 or 0/8
	Embedded                         // any of these forms of another closed IPv4 address
	Multicast                        // 224/4, ff00::/8, but for UDP to groups of applications
	Broadcast                        // 255.255.255.255, or the broadcast address of the guest's subnet
	Reserved                         // 240/4, fec0::/10, unassigned parts of ::/8
	LinkLocal                        // 169.254/16, fe80::/10
	Metadata                         // a cloud's instance metadata service
	GatewayClosed                    // the gateway, with a protocol other than TCP and UDP
	HostLoopbackClosed               // the gateway, on a port that HostLoopback does not list, and the host has no other address
	OwnSubnet                        // an address of the guest's subnet other than the gateway's
	SpecialClosed                    // a special address with a target that does not permit the flow
	ProtocolOff                      // the protocol is switched off

	NumReasons = int(ProtocolOff) + 1
)

var reasonNames = [NumReasons]string{
	None:               "none",
	Malformed:          "malformed",
	Protocol:           "protocol",
	FamilyOff:          "family-off",
	PortZero:           "port-zero",
	SpoofedSource:      "spoofed-source",
	Loopback:           "loopback",
	Unspecified:        "unspecified",
	MappedLoopback:     "mapped-loopback",
	Mapped:             "mapped",
	NAT64Loopback:      "nat64-loopback",
	TunnelLoopback:     "tunnel-loopback",
	Embedded:           "embedded",
	Multicast:          "multicast",
	Broadcast:          "broadcast",
	Reserved:           "reserved",
	LinkLocal:          "link-local",
	Metadata:           "metadata",
	GatewayClosed:      "gateway-closed",
	HostLoopbackClosed: "host-loopback-closed",
	OwnSubnet:          "own-subnet",
	SpecialClosed:      "special-closed",
	ProtocolOff:        "protocol-off",
}

func (r Reason) String() string {
	if int(r) < NumReasons {
		return reasonNames[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

// Verdict is the result of Judge. Dst, Alt and Gateway are set only if Action is Allow; Reason is None if and only if Action is
// Allow.
type Verdict struct {
	Action Action
	Reason Reason
	// Gateway is true if the flow goes to the host itself by a gateway's address or a Special address with ToLoopback.
	Gateway bool
	// Dst is the address to dial or send to, unmapped and without a zone.
	Dst netip.AddrPort
	// Alt is the host's address of the other family, to be tried if nothing listens on Dst, because a service often listens in one
	// family only. It is the zero value if there is none.
	Alt netip.AddrPort
}
