package forwarder

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/stack"
)

// acceptPause follows a failed accept (no descriptors, no memory): the backlog keeps the clients meanwhile. An accept
// loop that ends on its first error, or spins on it, are the two known ways to get this wrong.
const acceptPause = 100 * time.Millisecond

// PublishedTCP is one listener of the host whose clients are connected to a port of the guest.
type PublishedTCP struct {
	t    *Streams
	l    *os.File
	addr netip.AddrPort
	to   netip.AddrPort // the zero Addr is the guest's own
	done chan struct{}

	member  *spin.Member
	resting atomic.Bool
	doubt   doubt // of the kernel's road; guarded by its mu
}

// Publish serves l's clients from the guest's port; it takes l over.
func (t *Streams) Publish(l *net.TCPListener, guestPort uint16) (*PublishedTCP, error) {
	return t.PublishTo(l, netip.AddrPortFrom(netip.Addr{}, guestPort))
}

// PublishTo serves l's clients from to, an address that the guest has or routes to; it takes l over.
func (t *Streams) PublishTo(l *net.TCPListener, to netip.AddrPort) (*PublishedTCP, error) {
	defer l.Close()
	p := &PublishedTCP{t: t, addr: l.Addr().(*net.TCPAddr).AddrPort(), to: to, done: make(chan struct{})}
	var err error
	// A listener of package net gives each connection a keep-alive pace of its own. The copy shares the socket.
	if p.l, err = l.File(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = p.l.Close()
		return nil, net.ErrClosed
	}
	if p.member, err = t.cfg.Spin.NewMember(p.l, p.turn); err != nil {
		_ = p.l.Close()
		return nil, err
	}
	tuneHost(p.member.FD())
	t.published[p] = struct{}{}
	t.wg.Go(p.acceptLoop)
	return p, nil
}

// Addr is the address listened on.
func (p *PublishedTCP) Addr() netip.AddrPort { return p.addr }

// Close stops listening. Connections that exist go on, as they do when a port mapping is taken from a container.
func (p *PublishedTCP) Close() {
	p.t.mu.Lock()
	delete(p.t.published, p)
	p.t.mu.Unlock()
	p.member.Leave()
	_ = p.l.Close()
	<-p.done
}

func (p *PublishedTCP) acceptLoop() {
	defer close(p.done)
	_ = p.member.Run()
}

// turn takes one client.
func (p *PublishedTCP) turn() spin.Result {
	if p.resting.Load() {
		return spin.Idle
	}
	if p.t.clients.Load() >= maxDials {
		return p.rest()
	}
	fd, client, err := rawsock.Accept(p.member.FD())
	switch {
	case err == unix.EAGAIN:
		return spin.Idle
	case err != nil:
		p.t.stats.badAccepts.Add(1)
		return p.rest()
	}
	if l := p.t.cfg.Loopback; l != nil && client.Addr().IsLoopback() && !p.to.Addr().IsValid() {
		l.Serve(fd, client.Addr().Is6(), p.to.Port())
	} else if k := p.t.kernel; k == nil || !k.serve(fd, client, p) {
		go p.serve(fd, client)
		return spin.Yield
	}
	return spin.Progress
}

// rest takes no clients for a while.
func (p *PublishedTCP) rest() spin.Result {
	p.resting.Store(true)
	time.AfterFunc(acceptPause, func() {
		p.resting.Store(false)
		p.member.Wake()
	})
	return spin.Idle
}

// serve takes the client over and connects it by the link.
func (p *PublishedTCP) serve(fd int, client netip.AddrPort) {
	h, err := newHostConn(fd)
	if err != nil {
		return
	}
	if !p.t.enter() {
		h.reset()
		return
	}
	defer p.t.wg.Done()
	defer func() {
		if e := recover(); e != nil {
			p.t.panicked(e)
			h.reset()
		}
	}()
	p.t.serveClient(h, client, p.to)
}

// serveClient connects a client of the host to the port inside, from the client's own address.
func (t *Streams) serveClient(h *hostConn, client, to netip.AddrPort) {
	c, err := t.dialGuest(client, to)
	if err != nil {
		h.reset() // a closed port inside gives the client a reset
		return
	}
	t.run(c, h, Inbound)
}

// dialGuest tries the client's own family first and then the other, as the gateway: a v6 client reaches a server that
// listens on IPv4 only, and the other way round. Where to has an address there is only that to try.
func (t *Streams) dialGuest(client, to netip.AddrPort) (*stack.Conn, error) {
	t.clients.Add(1)
	defer t.clients.Add(-1)
	ctx, cancel := context.WithTimeout(t.ctx, guestDialTimeout)
	defer cancel()
	now := t.addrs.Load()
	guest, gateway, otherGuest, otherGateway := now.Guest4, now.Gateway4, now.Guest6, now.Gateway6
	if client.Addr().Is6() {
		guest, gateway, otherGuest, otherGateway = otherGuest, otherGateway, guest, gateway
	}
	port := to.Port()
	if a := to.Addr(); a.IsValid() && a.Is4() == client.Addr().Is4() {
		guest, otherGuest = a, netip.Addr{}
	} else if a.IsValid() {
		guest, otherGuest = netip.Addr{}, a
	}
	err := error(syscall.ECONNREFUSED)
	if guest.IsValid() {
		var c *stack.Conn
		c, err = t.dialGuestFrom(ctx, t.sourceFor(client, guest, gateway), netip.AddrPortFrom(guest, port))
		if err == nil {
			return c, nil
		}
	}
	if !otherGuest.IsValid() || !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, err
	}
	return t.dialGuestFrom(ctx, netip.AddrPortFrom(otherGateway, client.Port()), netip.AddrPortFrom(otherGuest, port))
}

// sourceFor is the address the guest sees. A kernel takes no packet from the wire whose source is a loopback address
// or its own, and cannot answer one that belongs on its link but is not there: those clients appear as the gateway.
func (t *Streams) sourceFor(client netip.AddrPort, guest, gateway netip.Addr) netip.AddrPort {
	a := client.Addr()
	onLink := func(n netip.Prefix) bool { return n.Contains(a) }
	if a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a == guest || slices.Contains(t.addrs.Load().Guests, a) || slices.ContainsFunc(t.cfg.Subnets, onLink) {
		return netip.AddrPortFrom(gateway, client.Port())
	}
	return client
}

// dialGuestFrom keeps the client's port unless that 4-tuple is taken: two loopback addresses may use the same one.
func (t *Streams) dialGuestFrom(ctx context.Context, src, dst netip.AddrPort) (*stack.Conn, error) {
	c, err := t.cfg.Guest.DialTCP(ctx, src, dst)
	if errors.Is(err, syscall.EADDRINUSE) {
		c, err = t.cfg.Guest.DialTCP(ctx, netip.AddrPortFrom(src.Addr(), 0), dst)
	}
	return c, err
}
