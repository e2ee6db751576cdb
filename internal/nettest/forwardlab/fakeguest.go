package forwardlab

import (
	"bytes"
	"net/netip"

	"rootlessnet/policy"
	"rootlessnet/stack"
)

// UDPError is an ICMP error about a datagram of the guest.
type UDPError struct {
	Flow    stack.Flow
	Payload []byte
	E       stack.ICMPError
}

// EchoError is an ICMP error about an echo request of the guest.
type EchoError struct {
	Req stack.Echo
	E   stack.ICMPError
}

// FakeGuest replaces the gateway's stack for the datapath of datagrams. It sends a copy of everything that is written to it to its
// channels.
type FakeGuest struct {
	UDP     chan stack.Datagram
	UDPErr  chan UDPError
	Echo    chan stack.Echo
	EchoErr chan EchoError
}

func NewFakeGuest() *FakeGuest {
	return &FakeGuest{make(chan stack.Datagram, 4096), make(chan UDPError, 4096), make(chan stack.Echo, 4096), make(chan EchoError, 4096)}
}

// WriteUDP is the stack's.
func (g *FakeGuest) WriteUDP(d *stack.Datagram) error {
	c := *d
	c.Payload = append(bytes.Clone(d.Payload), bytes.Join(d.More, nil)...)
	c.More = nil
	g.UDP <- c
	return nil
}

// WriteUDPError is the stack's.
func (g *FakeGuest) WriteUDPError(f stack.Flow, payload []byte, e stack.ICMPError) error {
	g.UDPErr <- UDPError{f, bytes.Clone(payload), e}
	return nil
}

// WriteEchoReply is the stack's.
func (g *FakeGuest) WriteEchoReply(e *stack.Echo) error {
	c := *e
	c.Payload = bytes.Clone(e.Payload)
	g.Echo <- c
	return nil
}

// WriteEchoError is the stack's.
func (g *FakeGuest) WriteEchoError(req *stack.Echo, e stack.ICMPError) error {
	c := *req
	c.Payload = bytes.Clone(req.Payload)
	g.EchoErr <- EchoError{c, e}
	return nil
}

// JudgeFunc is a policy. nil allows everything as it is.
type JudgeFunc func(p policy.Proto, src, dst netip.AddrPort) policy.Verdict

// Judge implements forwarder.Judge.
func (f JudgeFunc) Judge(p policy.Proto, src, dst netip.AddrPort) policy.Verdict {
	if f != nil {
		return f(p, src, dst)
	}
	return policy.Verdict{Action: policy.Allow, Dst: dst}
}
