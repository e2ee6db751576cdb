package splicetcp

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/breaker"
	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

// handshakePatience ends before a kernel sends its SYN or SYN-ACK again (RFC 6298 2.1: one second).
const handshakePatience = 900 * time.Millisecond

// requestState is the state of a request.
type requestState uint8

const (
	// dialling: the host's connect has begun, or waits for a free descriptor. The request counts as an attempt (Attempts).
	dialling requestState = iota
	// reinjecting: the host's connection is established, and the goroutine that has detected it sends the guest's SYN to lo
	// inside and calls accept. A SYN that the guest sends again now does not mean that the handshake has failed.
	reinjecting
	// reinjected: accept has not returned the connection at once. A SYN that is sent again means that the handshake has failed.
	reinjected
)

// request is a connection that the guest wants to open. The steps of its dial run one after the other, possibly on different
// goroutines; fields that other goroutines may use meanwhile are guarded by Path.mu.
type request struct {
	p        *Path
	flow     stack.Flow
	tos      uint8
	syn      *stack.SYN // guarded by p.mu: a SYN that was sent again replaces it
	decision forwarder.Decision
	fd       int            // the host's socket, -1: none; guarded by p.mu
	dst      netip.AddrPort // of fd; guarded by p.mu
	tries    int            // that found no descriptor
	first    error          // of the decision's destination, when the alternative is tried
	token    int32
	watched  bool         // guarded by p.mu
	state    requestState // guarded by p.mu
	since    time.Time    // of the dial, and then of the re-injection; guarded by p.mu
}

// HandleSYN implements stack.SYNHandler: it decides and dials, and has the guest's kernel complete the handshake with a
// socket of ours when the host's connection is established. Usually all of it happens in this call: a connect to a server on
// the same machine completes before it returns.
func (p *Path) HandleSYN(q *stack.SYN) (taken bool) {
	if q.TTL != guestTTL && !wasForwarded(q.TTL) || q.Endpoint != p.in.Endpoint {
		return false
	}
	d := p.f.Decide(q.Key(flow.TCP), 1)
	switch d.Action {
	case forwarder.Resolve:
		return false // the stack path serves the resolver
	case forwarder.Refuse:
		p.forget(q.Flow)
		d.Refusal.Answer(q)
		return true
	}
	p.using.RLock()
	defer p.using.RUnlock()
	r, taken := p.admit(q, d)
	if r != nil {
		p.dial(r, d.Dst)
	}
	return taken
}

// HandleReset implements stack.SYNHandler. A reset without ACK flag, of a connection of this path, leaves by the link (package
// netns, redirectRules). It is re-injected, since it is for a socket inside. If it answers the SYN-ACK of a request, the
// program has given up its connect, and the host's connection is reset: nothing else would tell.
func (p *Path) HandleReset(q *stack.SYN) {
	if q.Endpoint != p.in.Endpoint {
		return
	}
	p.using.RLock()
	defer p.using.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.reinject(q.Frame)
	if r := p.requests[q.Flow]; r != nil && r.state != dialling && q.Seq == r.syn.Seq+1 {
		p.giveUpLocked(r)
	}
}

// giveUpLocked drops a request whose SYN was re-injected and that the guest has reset.
func (p *Path) giveUpLocked(r *request) {
	p.givenUp++
	p.dropLocked(r)
}

// forget drops the request of an earlier SYN of the same flow: the rules have changed since, and refuse the flow.
func (p *Path) forget(f stack.Flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.requests[f]; r != nil {
		p.dropLocked(r)
	}
}

// admit enters the request into the table. If r is nil the SYN needs nothing more from this path: it was handled, or, if taken
// is false, it is for the stack path.
func (p *Path) admit(q *stack.SYN, d forwarder.Decision) (r *request, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, true
	}
	if q.TTL != guestTTL && !p.forwardsLocked() {
		return nil, p.waitForwardLocked(q)
	}
	if old := p.requests[q.Flow]; old != nil { // sent again
		switch old.state {
		case dialling:
			old.syn = q.Clone() // it may be another connection, from the same port
			return nil, true
		case reinjecting:
			return nil, true
		}
		if old.syn.Seq != q.Seq {
			// Another connection from the same port: the first was given up, and the guest's reset of it is still on its way.
			p.reinject(old.syn.ResetFrame())
			p.giveUpLocked(old)
			return p.beginLocked(q, d)
		}
		// The SYN-ACK has not reached the guest's socket, because of a packet-filter rule inside. The stack path's SYN-ACK
		// arrives by the link instead.
		p.reinjectFailedLocked(old)
		return nil, false
	}
	return p.beginLocked(q, d)
}

// beginLocked enters a request that is not in the table.
func (p *Path) beginLocked(q *stack.SYN, d forwarder.Decision) (r *request, taken bool) {
	if p.breakerOf(q).Open() || !p.take() {
		return nil, false
	}
	if !p.f.Attempts.Begin(d.Dst.Addr()) {
		p.give()
		p.f.TCP.DialLimit.Add(1)
		return nil, true // the guest sends its SYN again
	}
	r = &request{p: p, flow: q.Flow, tos: q.TOS, syn: q, decision: d, fd: -1, since: time.Now()}
	p.requests[q.Flow] = r
	return r, true
}

// dial starts a connect to dst for a request in the table.
func (p *Path) dial(r *request, dst netip.AddrPort) {
	var from forwarder.Egress
	if e := p.f.Endpoint(p.in.Endpoint); e != nil {
		from = e.Addresses().EgressTo(dst.Addr())
	}
	fd, done, err := forwarder.StartDial(from, dst, r.tos)
	if err != nil {
		p.dialFailed(r, dst, err)
		return
	}
	p.mu.Lock()
	if p.requests[r.flow] != r { // it was dropped meanwhile
		p.mu.Unlock()
		rawsock.Reset(fd)
		return
	}
	r.fd, r.dst = fd, dst
	if !done {
		r.syn = r.syn.Clone() // the stack may use the buffer again after HandleSYN
		if r.token, err = p.loop.Watch(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, r); err == nil {
			r.watched = true
			p.sweepLater()
		}
	}
	p.mu.Unlock()
	switch {
	case err != nil:
		p.dialFailed(r, dst, err)
	case done:
		p.dialled(r)
	}
}

// Ready is called by the loop when the connect has made progress.
func (r *request) Ready(uint32) {
	p := r.p
	p.mu.Lock()
	if p.requests[r.flow] != r || !r.watched {
		p.mu.Unlock()
		return
	}
	dst := r.dst
	done, err := rawsock.ConnectState(r.fd, dst)
	switch {
	case err != nil:
		err = forwarder.ConnectFailure(r.fd, err, dst)
		p.unwatchLocked(r)
	case done:
		forwarder.QueueErrors(r.fd, dst.Addr().Is4(), 0)
		p.unwatchLocked(r)
	default: // the event is older than the wait
		_ = p.loop.Rearm(r.fd, unix.EPOLLOUT|unix.EPOLLONESHOT, r.token)
	}
	p.mu.Unlock()
	switch {
	case err != nil:
		p.dialFailed(r, dst, err)
	case done:
		p.dialled(r)
	}
}

func (p *Path) unwatchLocked(r *request) {
	if r.watched {
		p.loop.Unwatch(r.fd, r.token)
		r.watched = false
	}
}

// dialled re-injects the guest's SYN: the host's connect has succeeded.
func (p *Path) dialled(r *request) {
	p.mu.Lock()
	if p.requests[r.flow] != r {
		p.mu.Unlock()
		return // it was dropped meanwhile, and its socket closed
	}
	if forwarder.ConnectedToItself(r.fd, r.dst) {
		rawsock.ResetOnClose(r.fd) // or it would occupy the port for a minute (TIME-WAIT)
		dst := r.dst
		p.mu.Unlock()
		p.dialFailed(r, dst, &forwarder.DialError{Errno: unix.ECONNREFUSED})
		return
	}
	rawsock.NoDelay(r.fd) // the loop does the rest of forwarder.TuneHost, when it is needed
	p.f.Attempts.End(r.decision.Dst.Addr())
	r.state, r.since = reinjecting, time.Now()
	p.reinjected++
	frame := r.syn.Frame
	p.mu.Unlock()
	p.reinject(frame)
	if l := p.listenerOf(r.flow.Dst.Addr()); l != nil && l.accept(r) {
		return
	}
	// The guest's ACK has not arrived yet, or was lost.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests[r.flow] == r {
		r.state = reinjected
		r.syn = r.syn.Clone()
		p.sweepLater()
		p.awaitLocked()
	}
}

// dialFailed tries the alternative destination, waits for a descriptor, or answers the guest with the error that the
// host's socket got. If both destinations fail and the alternative refused, the answer is that refusal; otherwise it is the
// error of the first, because the host may have only one family.
func (p *Path) dialFailed(r *request, dst netip.AddrPort, err error) {
	outOfResources := forwarder.OutOfResources(err)
	p.mu.Lock()
	if p.requests[r.flow] != r {
		p.mu.Unlock()
		return
	}
	p.unwatchLocked(r)
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
	alt := r.decision.Alt
	switch {
	case alt.IsValid() && dst != alt && !outOfResources:
		r.first = err
		p.mu.Unlock()
		p.dial(r, alt)
		return
	case outOfResources && r.tries < forwarder.MaxDialRetries:
		p.f.TCP.DialRetries.Add(1)
		if r.tries++; r.tries == 1 {
			r.syn = r.syn.Clone()
		}
		time.AfterFunc(forwarder.DialRetryPause, func() { p.dialAgain(r) })
		p.mu.Unlock()
		return
	}
	syn := r.syn
	p.dropLocked(r)
	p.mu.Unlock()
	p.f.TCP.DialErrors.Add(1)
	if r.first != nil && !errors.Is(err, unix.ECONNREFUSED) {
		dst, err = r.decision.Dst, r.first
	}
	forwarder.RefusalOf(err, flow.TCP, dst.Addr().Is4(), r.flow.Dst.Addr().Is4()).Answer(syn)
}

// dialAgain dials once more for a request that found no descriptor.
func (p *Path) dialAgain(r *request) {
	p.using.RLock()
	defer p.using.RUnlock()
	p.mu.Lock()
	current := p.requests[r.flow] == r
	p.mu.Unlock()
	if current {
		p.dial(r, r.decision.Dst)
	}
}

// dropLocked removes a request from the table, resets its socket and returns its descriptors to the budget.
func (p *Path) dropLocked(r *request) {
	if r.state == dialling {
		p.f.Attempts.End(r.decision.Dst.Addr())
	} else {
		p.reinjected--
	}
	p.unwatchLocked(r)
	if r.fd >= 0 {
		rawsock.Reset(r.fd)
		r.fd = -1
	}
	delete(p.requests, r.flow)
	p.give()
}

// reinjectFailedLocked drops a request whose SYN the guest's kernel has not answered on lo.
func (p *Path) reinjectFailedLocked(r *request) {
	p.reinjectFailed++
	p.failed(p.breakerOf(r.syn))
	p.dropLocked(r)
}

// reinject sends the guest's own SYN to lo inside, where TPROXY redirects it to a listener. If it is lost the guest sends it
// again, as on any link.
func (p *Path) reinject(frame []byte) {
	_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(p.packets), uintptr(unsafe.Pointer(&frame[0])), uintptr(len(frame)), unix.MSG_DONTWAIT,
		uintptr(unsafe.Pointer(&p.to)), unsafe.Sizeof(p.to))
}

// failed records with the circuit breaker that a handshake inside has failed or was late.
func (p *Path) failed(b *breaker.Breaker) {
	if b.Fail() {
		p.f.Log.Info("handshakes on the sandbox's loopback interface fail or are late, perhaps because of packet-filter rules inside: new connections of this kind take the userspace stack for a while",
			"for", forwarder.SplicePause, "failures", forwarder.SpliceFailures)
	}
}

// settle records with the circuit breaker the handshake of the accepted socket fd, of a request that was re-injected at since.
// It was late if the guest had to retransmit; that this process was slow does not count.
func (p *Path) settle(b *breaker.Breaker, fd int, since time.Time) {
	if time.Since(since) > handshakePatience {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Total_retrans > 0 {
			p.failed(b)
			return
		}
	}
	b.Succeed()
}
