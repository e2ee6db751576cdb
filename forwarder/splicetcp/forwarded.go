package splicetcp

import (
	"slices"

	"rootlessnet/internal/breaker"
	"rootlessnet/stack"
)

// TCP that the guest forwards: of containers on a bridge in its namespace, masqueraded there. The splice path takes it once
// the guest's namespace has been made ready for it (Inside.Forward), which is requested when the first of it is seen.

// forwardState says how far that is.
type forwardState uint8

const (
	forwardUnasked forwardState = iota
	forwardAsking
	forwardReady
	forwardRefused // for good
)

const (
	// guestTTL is what a Linux kernel sends its own segments with by default (net.ipv4.ip_default_ttl).
	guestTTL = 64
	// forwardHops is how many hops inside there may be: a bridge, and another in a container of containers.
	forwardHops = 4
	// maxWaiting bounds the requests that wait for the namespace to be made ready, some 50 ms.
	maxWaiting = 256
)

// initialTTLs are the times to live that systems begin with.
var initialTTLs = [...]uint8{guestTTL, 128, 255}

// wasForwarded reports whether a segment with this TTL was forwarded by the guest for another host. A TTL that is neither the
// guest's own nor a forwarded one was set by a program; such connections are left to the stack path.
func wasForwarded(ttl uint8) bool {
	return slices.ContainsFunc(initialTTLs[:], func(start uint8) bool { return ttl < start && ttl >= start-forwardHops })
}

// breakerOf is the circuit breaker for connections like q: rules for what is forwarded are others than those for the guest's
// own.
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

// forwardsLocked reports whether the Path takes what is forwarded. If the namespace was not asked yet, it is asked, and the
// answer is no.
func (p *Path) forwardsLocked() bool {
	if p.forwarding == forwardUnasked {
		p.forwarding = forwardRefused
		if p.in.Forward != nil {
			p.forwarding = forwardAsking
			go p.askForward()
		}
	}
	return p.forwarding == forwardReady
}

// waitForwardLocked keeps a request until the namespace has been made ready.
func (p *Path) waitForwardLocked(q *stack.SYN) (kept bool) {
	if p.forwarding != forwardAsking {
		return false
	}
	if len(p.waiting) < maxWaiting {
		p.waiting[q.Flow] = q.Clone()
	}
	return true // above the limit it is dropped, and sent again
}

// askForward has the namespace made ready.
func (p *Path) askForward() {
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
		return // the guest sends again what has waited
	}
	p.forwarding = forwardReady
	p.mu.Unlock()
	for _, q := range waiting {
		p.HandleSYN(q)
	}
}
