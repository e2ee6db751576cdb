package splicetcp

import (
	"slices"

	"rootlessnet/internal/breaker"
	"rootlessnet/stack"
)

// TCP that the guest forwards: of containers on a bridge in its namespace, masqueraded there. The splice path takes it once
// the guest's namespace has been prepared for it (Inside.Forward), which begins with the first such SYN.

// forwardState is the state of that preparation.
type forwardState uint8

const (
	forwardUnprepared forwardState = iota
	forwardPreparing
	forwardReady
	forwardRefused // final: Inside.Forward is not called again
)

const (
	// guestTTL is what a Linux kernel sends its own segments with by default (net.ipv4.ip_default_ttl).
	guestTTL = 64
	// forwardHops is the maximum number of hops inside: a bridge, and another in a container of containers.
	forwardHops = 4
	// maxWaiting bounds the requests that wait for the namespace to be prepared, which takes some 50 ms.
	maxWaiting = 256
)

// initialTTLs are the times to live that systems begin with.
var initialTTLs = [...]uint8{guestTTL, 128, 255}

// wasForwarded reports whether a segment with this TTL was forwarded by the guest for another host. A TTL that is neither the
// guest's own nor a forwarded one was set by a program; such connections are left to the stack path.
func wasForwarded(ttl uint8) bool {
	return slices.ContainsFunc(initialTTLs[:], func(start uint8) bool { return ttl < start && ttl >= start-forwardHops })
}

// breakerOf is the circuit breaker for connections like q: other packet-filter rules apply to forwarded connections than to
// the guest's own.
func (p *Path) breakerOf(q *stack.SYN) *breaker.Breaker {
	if q.TTL == guestTTL {
		return p.own
	}
	return p.forwarded
}

// forwardsNow is forwardsLocked without mu held.
func (p *Path) forwardsNow() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && p.forwardsLocked()
}

// forwardsLocked reports whether the Path takes what is forwarded. The first call starts the preparation of the namespace
// and returns false.
func (p *Path) forwardsLocked() bool {
	if p.forwarding == forwardUnprepared {
		p.forwarding = forwardRefused
		if p.in.Forward != nil {
			p.forwarding = forwardPreparing
			go p.prepareForward()
		}
	}
	return p.forwarding == forwardReady
}

// waitForwardLocked keeps a request until the namespace is prepared.
func (p *Path) waitForwardLocked(q *stack.SYN) (kept bool) {
	if p.forwarding != forwardPreparing {
		return false
	}
	if len(p.waiting) < maxWaiting {
		p.waiting[q.Flow] = q.Clone()
	}
	return true // above the limit the SYN is dropped, and the guest sends it again
}

// prepareForward calls Inside.Forward and then handles the requests that have waited for it.
func (p *Path) prepareForward() {
	err := p.in.Forward() // fails at once when the sandbox has ended
	p.mu.Lock()
	waiting := p.waiting
	p.waiting = map[stack.Flow]*stack.SYN{}
	if err != nil {
		p.forwarding = forwardRefused
		if !p.closed {
			p.f.Log.Info("TCP that the namespace forwards for others goes through the userspace stack", "reason", err)
		}
		p.mu.Unlock()
		return // the guest sends the SYNs that have waited again
	}
	p.forwarding = forwardReady
	p.mu.Unlock()
	for _, q := range waiting {
		p.HandleSYN(q)
	}
}
