package userns

import (
	"context"
	"os"
)

// Diverted is what the supervisor gets of a Diversion. Whoever has it closes all of it.
type Diverted struct {
	// Rules is what the rules inside live by: they are gone when it is closed.
	Rules *os.File
	// Packets is an AF_PACKET socket: what is written to it, frames with an Ethernet header of zeroes, arrives on lo, bound for a
	// listener. lo's index is LoopbackIndex.
	Packets *os.File
	// Listeners accept the connections whose first segment was written to Packets, and with IPv6 there are two of
	// them, non-blocking. An accepted socket's own address is the one the command wanted. Whoever can send on lo inside
	// can connect to them, too.
	Listeners []*os.File
	// Mint makes sockets for the other way.
	Mint *Minter
}

// Forward has the road take TCP that the namespace forwards, too; more than once is no harm. The namespace's connections
// are tracked from then on.
func (s *Sandbox) Forward(ctx context.Context, d *Diverted) error {
	if _, err := s.request(ctx, &message{Type: msgForward}, msgDone); err != nil {
		return err
	}
	d.Mint.stockBeyond()
	return nil
}

// LoopbackIndex is the interface index of lo in any namespace.
const LoopbackIndex = 1

// Divert sets up the kernel's road inside, whole or not at all; once. What it made ends with the sandbox.
func (s *Sandbox) Divert(ctx context.Context, d Diversion) (*Diverted, error) {
	r, err := s.request(ctx, &message{Type: msgDivert, Divert: &d}, msgDiverted)
	if err != nil {
		return nil, err
	}
	m, err := newMinter(r.fds[2], d.IPv6)
	if err != nil {
		closeAll(r.fds)
		return nil, &Error{Op: "divert TCP", Err: err}
	}
	return &Diverted{Rules: r.fds[0], Packets: r.fds[1], Listeners: r.fds[3:], Mint: m}, nil
}
