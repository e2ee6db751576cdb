package stack

import (
	"fmt"
	"net/netip"

	"rootlessnet/flow"
)

// Flow is the 4-tuple of a flow as the guest sees it. Src is the initiator. Endpoint says behind which port of the
// stack the guest is.
type Flow struct {
	Endpoint flow.Endpoint
	Src, Dst netip.AddrPort
}

// Key is the flow's key for a protocol.
func (f Flow) Key(p flow.Proto) flow.Key {
	return flow.Key{Endpoint: f.Endpoint, Proto: p, Src: f.Src, Dst: f.Dst}
}

func (f Flow) String() string { return fmt.Sprintf("%v->%v", f.Src, f.Dst) }

// Handler receives the guest's new connections, datagrams and echo requests. Package forwarder implements it.
type Handler interface {
	// HandleTCP is called on a goroutine of its own for each connection the guest opens. It must call exactly one of the
	// request's Accept, Reset, Unreachable and Ignore.
	HandleTCP(req *TCPRequest)
	// HandleUDP is called on the receive path for every datagram or GSO batch the guest sends, fragments reassembled, except
	// for DHCP. It must not block, and must not keep d or d.Payload after it returns.
	HandleUDP(d *Datagram)
	// HandleEcho is called on the receive path for every ICMP or ICMPv6 echo request that the gateway does not answer itself. The
	// rules of HandleUDP apply.
	HandleEcho(e *Echo)
	// HandleUDPError is called on the receive path when the guest sends an ICMP error about a datagram of WriteUDP, whose flow is
	// given: Src is the remote, Dst the guest. It must not block.
	HandleUDPError(flow Flow, e ICMPError)
}

// Datagram is one UDP datagram or, if GSOSize is not 0, a GSO batch: several datagrams of one flow.
type Datagram struct {
	Flow
	Payload []byte
	TTL     uint8 // IPv4 TTL or IPv6 hop limit; 0 on write means 64
	TOS     uint8 // IPv4 TOS or IPv6 traffic class, ECN bits included
	DF      bool  // IPv4 don't-fragment; always true for an IPv6 datagram received unfragmented
	GSOSize uint16
	// GSOSize is not 0 if Payload consists of several datagrams of GSOSize bytes each, of which the last may be shorter.
	// WriteUDP splits such a batch itself if the device has no USO.

	// More, for WriteUDP only, holds the further datagrams of a batch that is not contiguous in memory: Payload and each of More
	// but the last have GSOSize bytes; the last may be shorter, and none is empty. A Handler never gets it.
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

// ICMPError is an ICMP (RFC 792) or ICMPv6 (RFC 4443) error message. Type and Code are those of the address family of the
// packet that caused it. From is the sender; the zero Addr means the gateway.
type ICMPError struct {
	From netip.Addr
	Type uint8
	Code uint8
	MTU  uint32 // in bytes; for "fragmentation needed" and "packet too big" only
}
