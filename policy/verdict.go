package policy

import (
	"net/netip"
	"strconv"

	"rootlessnet/flow"
)

// Proto is an IP protocol number.
type Proto = flow.Proto

// The protocols that cross the gateway; any other is prohibited.
const (
	ICMP   = flow.ICMP
	TCP    = flow.TCP
	UDP    = flow.UDP
	ICMPv6 = flow.ICMPv6
)

// Action says what becomes of a flow. The zero value is Drop, so that a Verdict nobody filled in opens nothing.
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

// Reason says why a flow was not allowed. The set is closed: a counter per reason is an array of NumReasons.
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
	MappedLoopback                   // IPv4-mapped spelling of 127/8 or 0/8
	Mapped                           // IPv4-mapped spelling of anything else
	NAT64Loopback                    // NAT64 spelling of 127/8 or 0/8
	TunnelLoopback                   // 6to4, Teredo or ISATAP spelling of 127/8 or 0/8
	Embedded                         // any of these spellings of another closed IPv4 address
	Multicast                        // 224/4, ff00::/8
	Broadcast                        // 255.255.255.255, or the broadcast address of the guest's subnet
	Reserved                         // 240/4, what is unassigned in ::/8, fec0::/10
	LinkLocal                        // 169.254/16, fe80::/10
	Metadata                         // a cloud's instance metadata service
	GatewayClosed                    // the gateway, by a protocol it does not pass on
	HostLoopbackClosed               // the gateway, on a port that HostLoopback does not name
	OwnSubnet                        // an address of the guest's subnet that nobody has
	SpecialClosed                    // a special address, which is closed for this
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

// Verdict is the answer of Judge. Dst, Alt and Gateway are set only when Action is Allow, and Reason is None exactly then.
type Verdict struct {
	Action Action
	Reason Reason
	// Gateway is true when the guest addressed the gateway: Dst and Alt are then the host's loopback.
	Gateway bool
	// Dst is what the host must dial or send to, unmapped and without a zone.
	Dst netip.AddrPort
	// Alt is the loopback of the other family, to be tried when nothing listens on Dst; the zero value when there is
	// none. A service on "localhost" often listens on one family only.
	Alt netip.AddrPort
}
