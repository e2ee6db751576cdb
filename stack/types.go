package stack

import (
	"fmt"
	"net/netip"

	"rootlessnet/flow"
)

// Flow names a conversation as the guest sees it: Src is the side that sent the first packet. Endpoint says behind which
// port of the stack the guest is.
type Flow struct {
	Endpoint flow.Endpoint
	Src, Dst netip.AddrPort
}

// Key is the flow's key for a protocol.
func (f Flow) Key(p flow.Proto) flow.Key {
	return flow.Key{Endpoint: f.Endpoint, Proto: p, Src: f.Src, Dst: f.Dst}
}

func (f Flow) String() string { return fmt.Sprintf("%v->%v", f.Src, f.Dst) }

// Handler receives what the guest starts. The stack calls it; forwarder implements it.
type Handler interface {
	// HandleTCP is called on a goroutine of its own for each connection the guest opens. It must end with exactly
	// one of the request's Accept, Reset, Unreachable or Ignore.
	HandleTCP(req *TCPRequest)
	// HandleUDP is called on the receive path for every datagram the guest sends (fragments reassembled) that is
	// not for DHCP. It must not block, and must not keep d or d.Payload after it returns.
	HandleUDP(d *Datagram)
	// HandleEcho is called on the receive path for every ICMP or ICMPv6 echo request that is not for an address
	// of the gateway itself. The same rules as for HandleUDP.
	HandleEcho(e *Echo)
	// HandleUDPError is called on the receive path when the guest answers a datagram we wrote with an ICMP error.
	// flow is that of the datagram we wrote: Src the remote, Dst the guest.
	HandleUDPError(flow Flow, e ICMPError)
}

// Datagram is one UDP datagram, or with GSOSize a train of them.
type Datagram struct {
	Flow
	Payload []byte
	TTL     uint8 // IPv4 TTL or IPv6 hop limit; 0 on write means 64
	TOS     uint8 // IPv4 TOS or IPv6 traffic class, ECN bits included
	DF      bool  // IPv4 don't-fragment; always true for IPv6 that came in one piece
	GSOSize uint16
	// GSOSize is non-zero when Payload is several datagrams of GSOSize bytes each (the last may be shorter).
	// WriteUDP splits such a train itself where the device has no USO.

	// More, for WriteUDP, is the rest of a train whose datagrams lie in several places: Payload and each of More but the
	// last are of GSOSize bytes, and none is longer or empty. A Handler never gets it.
	More [][]byte
}

// Echo is one ICMP or ICMPv6 echo request (from the guest) or reply (to it); the family is that of the addresses.
type Echo struct {
	Endpoint flow.Endpoint
	Src, Dst netip.Addr
	ID, Seq  uint16
	Payload  []byte
	TTL      uint8
	TOS      uint8
	DF       bool
}

// ICMPError is an ICMP (RFC 792) or ICMPv6 (RFC 4443) error message; Type and Code are of the family of the packet it
// answers. The zero From means the gateway.
type ICMPError struct {
	From netip.Addr
	Type uint8
	Code uint8
	MTU  uint32 // of "fragmentation needed" and "packet too big"
}
