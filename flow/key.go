package flow

import (
	"fmt"
	"net/netip"
)

// Endpoint identifies one attachment of a container to a gateway. A gateway with a single guest uses the zero value.
type Endpoint uint32

// Proto is an IP protocol number (IANA, "Assigned Internet Protocol Numbers").
type Proto uint8

// The protocols that cross a gateway.
const (
	ICMP   Proto = 1
	TCP    Proto = 6
	UDP    Proto = 17
	ICMPv6 Proto = 58
)

func (p Proto) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmpv6"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// Key names a flow as the guest sees it: Src is the side that sent the first packet. Of ICMP echo the port of the guest's
// side is the identifier (RFC 792) and the other port is 0.
type Key struct {
	Endpoint Endpoint
	Proto    Proto
	Src, Dst netip.AddrPort
}

func (k Key) String() string { return fmt.Sprintf("%v %v->%v", k.Proto, k.Src, k.Dst) }

// Direction is which side opened a flow.
type Direction uint8

const (
	// Outbound flows were opened by the guest.
	Outbound Direction = iota
	// Inbound flows were opened by a client of a published port.
	Inbound
)

func (d Direction) String() string {
	if d == Inbound {
		return "in"
	}
	return "out"
}

// Datapath is what carries a flow.
type Datapath uint8

const (
	// Stack flows are TCP connections that end in the userspace TCP/IP stack.
	Stack Datapath = iota
	// Splice flows are TCP connections of which both ends are kernel sockets, joined by splice(2).
	Splice
	// Datagram flows are UDP and ICMP echo.
	Datagram
	// Loopback flows connect a port of one loopback to a port of another.
	Loopback
)

func (d Datapath) String() string {
	switch d {
	case Stack:
		return "stack"
	case Splice:
		return "splice"
	case Datagram:
		return "datagram"
	case Loopback:
		return "loopback"
	}
	return fmt.Sprintf("datapath-%d", uint8(d))
}

// State is the state of a flow.
type State uint8

const (
	// Unreplied: packets were seen in one direction only. TCP flows are never in this state: they enter the table when
	// both ends are open.
	Unreplied State = iota
	// Established: both directions are open.
	Established
	// HalfClosed: one side of a TCP connection has sent FIN.
	HalfClosed
	// Ended: the flow has ended.
	Ended
)

func (s State) String() string {
	switch s {
	case Unreplied:
		return "unreplied"
	case Established:
		return "established"
	case HalfClosed:
		return "half-closed"
	case Ended:
		return "ended"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}
