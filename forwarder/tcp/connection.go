package tcp

import (
	"sync"
	"sync/atomic"
	"time"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/stack"
)

// connection is one joined connection: a guest's endpoint, a host's socket, and a goroutine for each direction. States:
// both directions open; one closed by FIN (the other goes on); ended. A reset or an error on one side resets the other.
type connection struct {
	flow.Entry
	p     *Path
	c     *stack.Conn
	h     *hostConn
	once  sync.Once
	stall *time.Timer   // of waitGuest
	sent  chan struct{} // closed when guestToHost has ended

	guestEOF, hostEOF atomic.Bool // FIN was received, and nothing is left to read
	toHost, toGuest   atomic.Uint64
}

// Counters implements flow.Carrier.
func (f *connection) Counters() flow.Counters {
	c := flow.Counters{State: flow.Established, BytesToHost: f.toHost.Load(), BytesToGuest: f.toGuest.Load()}
	if f.guestEOF.Load() || f.hostEOF.Load() {
		c.State = flow.HalfClosed
	}
	return c
}

// Kill implements flow.Carrier. abort may wait for the endpoint's lock, so it has a goroutine of its own.
func (f *connection) Kill() {
	if f.p.enter() {
		go func() {
			defer f.p.wg.Done()
			f.abort()
		}()
	}
}

// run joins c and h until both directions have ended. d is the decision of an outbound connection, nil for a client of a
// published port.
func (p *Path) run(c *stack.Conn, h *hostConn, d *forwarder.Decision) {
	dir := flow.Inbound
	if d != nil {
		dir = flow.Outbound
	}
	f := &connection{p: p, c: c, h: h, sent: make(chan struct{})}
	f.Entry = flow.Entry{Key: c.Key(flow.TCP), Direction: dir, Datapath: flow.Stack, Peer: h.peer}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.Abort()
		h.reset()
		return
	}
	p.conns[f] = struct{}{}
	p.mu.Unlock()
	p.f.Flows.Add(&f.Entry, f)
	if dir == flow.Inbound {
		p.f.TCP.Inbound.Add(1)
	} else {
		p.f.TCP.Outbound.Add(1)
	}
	p.keepOnLink(c)
	// The guest's reset must be seen even while both directions wait for the host.
	c.OnFailure(h.wake)
	if d != nil && !p.f.StillAllowed(d, &f.Entry) {
		f.Kill()
	}
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		defer f.endGuestToHost()
		defer f.guard()
		f.guestToHost()
	}()
	func() {
		defer f.guard()
		f.hostToGuest()
	}()
	<-f.sent
	f.once.Do(func() { h.close(); c.Close() })
	c.Detach()
	p.f.Flows.Remove(&f.Entry, f.Counters())
	p.mu.Lock()
	delete(p.conns, f)
	p.mu.Unlock()
}

func (f *connection) endGuestToHost() {
	close(f.sent)
	if f.hostEOF.Load() { // the other direction only waits for this
		f.h.wakeReader()
	}
}

// abort resets both sides. Both directions then end by themselves.
func (f *connection) abort() {
	f.once.Do(func() {
		// What the guest sent before its reset is passed on, as it would have arrived at the remote host.
		_ = f.h.rc.Control(func(fd uintptr) { _, _ = f.c.ReadTo(&sockWriter{fd: fd}) })
		f.c.Abort()
		f.h.reset()
	})
}

// guard recovers a panic and resets the connection.
func (f *connection) guard() {
	if e := recover(); e != nil {
		f.p.panicked(e)
		f.abort()
	}
}
