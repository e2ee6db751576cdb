package forwarder

import (
	"slices"

	"rootlessnet/stack"
)

// TCP that the guest forwards: of containers on a bridge in its namespace, masqueraded by the guest. The road takes it once
// the guest's namespace has been made ready for it (Kernel.Forward), which is asked for when the first of it is seen.

// forwardState says how far that is.
type forwardState uint8

const (
	forwardUnasked forwardState = iota
	forwardAsking
	forwardReady
	forwardRefused // for good
)

const (
	// guestTTL is what a Linux kernel sends its own segments with, unless told otherwise (net.ipv4.ip_default_ttl).
	guestTTL = 64
	// forwardHops is how many hops inside there may be: a bridge, and another in a container of containers.
	forwardHops = 4
	// heldMost bounds the requests that wait for the namespace to be made ready, some 50 ms.
	heldMost = 256
)

// forwardStarts are the times to live that systems begin with.
var forwardStarts = [...]uint8{guestTTL, 128, 255}

// wasForwarded tells forwarded segments from the guest's own. Others are of programs that set a TTL of their own, and left to
// the stack.
func wasForwarded(ttl uint8) bool {
	return slices.ContainsFunc(forwardStarts[:], func(start uint8) bool { return ttl < start && ttl >= start-forwardHops })
}

// forwards says whether the road takes what is forwarded. If that has not been asked yet, it is, and the answer is no.
// r.mu is held.
func (r *kernelRoad) forwards() bool {
	if r.forwarding == forwardUnasked {
		r.forwarding = forwardRefused
		if r.k.Forward != nil {
			r.forwarding = forwardAsking
			go r.askForward()
		}
	}
	return r.forwarding == forwardReady
}

// hold keeps a request until the namespace has been made ready. r.mu is held.
func (r *kernelRoad) hold(q *stack.SYN) (held bool) {
	if r.forwarding != forwardAsking {
		return false
	}
	if len(r.held) < heldMost {
		r.held[q.Flow] = q.Clone()
	}
	return true // beyond the limit it is dropped, and sent again
}

// askForward has the namespace made ready.
func (r *kernelRoad) askForward() {
	err := r.k.Forward() // fails at once when the sandbox has ended
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.held
	r.held = map[stack.Flow]*stack.SYN{}
	if err != nil {
		r.forwarding = forwardRefused
		if !r.closed {
			r.t.log.Info("TCP that is forwarded inside goes through the userspace stack", "reason", err)
		}
		return // what was held is sent again
	}
	r.forwarding = forwardReady
	for _, q := range held {
		r.take(q)
	}
}
