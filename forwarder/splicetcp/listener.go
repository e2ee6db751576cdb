package splicetcp

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

// acceptMost bounds the connections accepted in one handler run: all of them may be attempts to bypass the policy.
const acceptMost = 64

// listener accepts, inside, the connections whose SYN was re-injected.
type listener struct {
	p     *Path
	fd    int
	ipv6  bool
	token int32
}

// Ready is called by the loop when a connection has been established that dialled did not find at once.
func (l *listener) Ready(uint32) {
	l.p.mu.Lock()
	closed := l.p.closed
	l.p.mu.Unlock()
	if closed {
		return
	}
	l.accept(nil)
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.p.awaitLocked()
}

// accept accepts connections until the backlog is empty, or, if r is not nil, until the connection of r was accepted; found
// reports whether it was. A connection that belongs to no request is an attempt from inside to bypass the policy. Several
// goroutines may accept at once: each connection is matched with its request under the lock.
func (l *listener) accept(r *request) (found bool) {
	p := l.p
	for range acceptMost {
		fd, peer, err := rawsock.Accept(l.fd)
		if err != nil {
			if forwarder.OutOfResources(err) {
				p.f.TCP.AcceptErrors.Add(1)
				p.pause()
			}
			return false
		}
		if got := p.match(fd, stack.Flow{Endpoint: p.in.Endpoint, Src: peer, Dst: rawsock.LocalAddr(fd)}); got != nil && got == r {
			return true
		}
	}
	return false
}

// match joins an accepted connection with the host's end of its request, or resets it. It returns the request.
func (p *Path) match(fd int, f stack.Flow) *request {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.requests[f]
	if p.closed || r == nil || r.state == dialling {
		p.unmatched++
		rawsock.Reset(fd)
		return nil
	}
	delete(p.requests, f)
	p.reinjected--
	p.settle(p.breakerOf(r.syn), fd, r.since)
	r.syn.Established()
	p.joinLocked(r.fd, fd, &r.decision, flow.Entry{Key: f.Key(flow.TCP), Direction: flow.Outbound, Datapath: flow.Splice, Peer: r.dst})
	return r
}

// awaitLocked has the loop call Ready for the next connection.
func (p *Path) awaitLocked() {
	if p.closed || p.reinjected == 0 || p.pausing { // without a request no connection is expected
		return
	}
	for i := range p.listen {
		l := &p.listen[i]
		_ = p.loop.Rearm(l.fd, unix.EPOLLIN|unix.EPOLLONESHOT, l.token)
	}
}

// pause accepts nothing for a while: a listener with something in its backlog is ready all the time.
func (p *Path) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pausing {
		p.pausing = true
		time.AfterFunc(inbound.Pause, p.endPause)
	}
}

func (p *Path) endPause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pausing = false
	p.awaitLocked()
}

// listenerOf is the listener of a's family; nil when there is none.
func (p *Path) listenerOf(a netip.Addr) *listener {
	for i := range p.listen {
		if p.listen[i].ipv6 == a.Is6() {
			return &p.listen[i]
		}
	}
	return nil
}
