package splicetcp

import (
	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/rawsock"
	"rootlessnet/splice"
	"rootlessnet/stack"
)

// joint is one joined connection.
type joint struct {
	flow.Entry
	pair *splice.Pair // the host's socket first
}

// Counters implements flow.Carrier.
func (j *joint) Counters() flow.Counters {
	c := flow.Counters{State: flow.Established}
	if j.pair.HalfClosed() {
		c.State = flow.HalfClosed
	}
	c.BytesToHost, c.BytesToGuest = j.pair.Moved()
	return c
}

// Kill implements flow.Carrier.
func (j *joint) Kill() { j.pair.Kill() }

// joinLocked passes both sockets to the loop; their descriptors have been taken from the budget. d is the decision of an outbound connection. mu
// is held, because the pair may end at once.
func (p *Path) joinLocked(host, guest int, d *forwarder.Decision, e flow.Entry) {
	j := &joint{Entry: e}
	var err error
	if j.pair, err = p.loop.Join(host, guest, func() { p.ended(j) }); err != nil { // no memory, or closed
		rawsock.Reset(host)
		rawsock.Reset(guest)
		p.give()
		return
	}
	p.joined[j] = struct{}{}
	p.f.Flows.Add(&j.Entry, j)
	if d != nil && !p.f.StillAllowed(d, &j.Entry) {
		j.Kill()
	}
	if e.Direction == flow.Inbound {
		p.f.TCP.Inbound.Add(1)
	} else {
		p.f.TCP.Outbound.Add(1)
	}
}

// ended is called by the loop when a pair has ended.
func (p *Path) ended(j *joint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.joined, j)
	c := j.Counters()
	p.endedToHost += c.BytesToHost
	p.endedToGuest += c.BytesToGuest
	p.f.Flows.Remove(&j.Entry, c)
	p.give()
}

// isJoined reports whether a joined connection has these addresses inside.
func (p *Path) isJoined(f stack.Flow) bool {
	k := f.Key(flow.TCP)
	p.mu.Lock()
	defer p.mu.Unlock()
	for j := range p.joined {
		if j.Key == k {
			return true
		}
	}
	return false
}
