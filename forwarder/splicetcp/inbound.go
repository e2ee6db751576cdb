package splicetcp

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/stack"
)

// stackAfter is how long a connect to the guest may take before the client is passed to the stack path: a little more than
// the time after which a kernel sends its SYN again.
const stackAfter = 1200 * time.Millisecond

// Serve connects a client of a published port to the port inside by a pooled socket that has the client's address. The
// Path declines what the stack path does better: a port that is closed, or that is open only to what comes by the uplink;
// a server of the other family; an empty pool. A client that the guest does not answer is passed
// to the stack path later.
func (p *Path) Serve(c *forwarder.Client) (spin.Result, bool) {
	to := c.Port.Target()
	e := p.f.Endpoint(to.Endpoint)
	if e == nil || to.Endpoint != p.in.Endpoint {
		return spin.Idle, false
	}
	server := e.Addresses().Guest(c.Addr.Addr())
	if !to.Addr.Addr().IsValid() {
		server = e.Asked(c.FD, c.Addr.Addr())
	}
	if !server.IsValid() {
		return spin.Idle, false
	}
	behind := to.Addr.Addr().IsValid() && to.Addr.Addr() != server
	if behind && to.Addr.Addr().Is4() != server.Is4() || c.Port.Splice.Open() || behind && !p.forwardsNow() || !p.take() {
		return spin.Idle, false
	}
	if behind {
		server = to.Addr.Addr()
	}
	f := stack.Flow{Endpoint: to.Endpoint, Src: e.ClientSource(c.Addr, server), Dst: netip.AddrPortFrom(server, to.Addr.Port())}
	fd, done, err := p.connect(f, behind)
	if err == unix.EADDRNOTAVAIL && p.isJoined(f) {
		// A client may connect to two published ports from one port, and clients at two addresses of the host's loopback may
		// use the same port. The address is then in use by a spliced connection; the stack path would not detect that.
		f.Src = netip.AddrPortFrom(f.Src.Addr(), 0)
		if fd, done, err = p.connect(f, behind); err == nil {
			f.Src = rawsock.LocalAddr(fd)
		}
	}
	switch {
	case err != nil:
		p.give()
		return spin.Idle, false
	case done:
		p.joinClient(c, fd, f)
		return spin.Progress, true
	}
	return spin.Progress, p.wait(c, fd, f)
}

// connect starts a connection to the guest, or to a server behind it, from f.Src. Nearly always the connect completes at once.
func (p *Path) connect(f stack.Flow, behind bool) (fd int, done bool, err error) {
	if fd, err = p.in.Pool.Get(f.Dst.Addr().Is6(), behind); err != nil {
		return -1, false, err
	}
	if done, err = rawsock.ConnectFrom(fd, f.Src, f.Dst); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// joinClient joins a client with the socket that is connected to the server.
func (p *Path) joinClient(c *forwarder.Client, fd int, f stack.Flow) {
	c.Port.Splice.Succeed()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joinLocked(c.FD, fd, nil, flow.Entry{Key: f.Key(flow.TCP), Direction: flow.Inbound, Datapath: flow.Splice, Peer: c.Addr})
}

// wait waits for a connect that did not complete at once: the server's backlog is full, or a rule inside drops what comes by lo. After
// stackAfter the client is passed to the stack path, which waits longer and sends by the uplink. false: the client is declined.
func (p *Path) wait(c *forwarder.Client, fd int, f stack.Flow) bool {
	w := &inbound.Client{Socket: c.FD}
	w.Connected = func(fd int, _ netip.AddrPort) { p.joinClient(c, fd, f) }
	w.Failed = func(netip.AddrPort, error) {
		p.give()
		c.PassOn()
	}
	w.Late = func() {
		if p.clients.Take(w) {
			p.failed(c.Port.Splice)
			p.give()
			c.PassOn()
		}
	}
	if p.clients.Wait(w, fd, f.Dst, stackAfter) != nil {
		p.give()
		return false
	}
	return true
}
