package forwarder

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"rootlessnet/stack"
)

// acceptPause follows a failed accept (no descriptors, no memory): the backlog keeps the clients meanwhile. An accept
// loop that ends on its first error, or spins on it, are the two known ways to get this wrong.
const acceptPause = 100 * time.Millisecond

// PublishedTCP is one listener of the host whose clients are connected to a port of the guest.
type PublishedTCP struct {
	t    *Streams
	l    *net.TCPListener
	port uint16
	done chan struct{}
}

// Publish serves l's clients from the guest's port; it takes l over.
func (t *Streams) Publish(l *net.TCPListener, guestPort uint16) (*PublishedTCP, error) {
	p := &PublishedTCP{t: t, l: l, port: guestPort, done: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = l.Close()
		return nil, net.ErrClosed
	}
	t.published[p] = struct{}{}
	t.wg.Go(p.acceptLoop)
	return p, nil
}

// Addr is the address listened on.
func (p *PublishedTCP) Addr() netip.AddrPort { return p.l.Addr().(*net.TCPAddr).AddrPort() }

// Close stops listening. Connections that exist go on, as they do when a port mapping is taken from a container.
func (p *PublishedTCP) Close() {
	p.t.mu.Lock()
	delete(p.t.published, p)
	p.t.mu.Unlock()
	_ = p.l.Close()
	<-p.done
}

func (p *PublishedTCP) acceptLoop() {
	defer close(p.done)
	for {
		tc, err := p.l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.t.stats.badAccepts.Add(1)
			select {
			case <-time.After(acceptPause):
				continue
			case <-p.t.ctx.Done():
				return
			}
		}
		if !p.t.enter() {
			_ = tc.Close()
			return
		}
		go func() {
			defer p.t.wg.Done()
			p.t.serveClient(tc, p.port)
		}()
	}
}

// serveClient connects a client of the host to the guest's port, from the client's own address.
func (t *Streams) serveClient(tc *net.TCPConn, port uint16) {
	rc, err := tc.SyscallConn()
	if err != nil {
		_ = tc.Close()
		return
	}
	h := &hostConn{f: tc, rc: rc}
	h.tune(0, 0)
	c, err := t.dialGuest(tc.RemoteAddr().(*net.TCPAddr).AddrPort(), port)
	if err != nil {
		h.reset() // a closed port inside gives the client a reset
		return
	}
	t.run(c, h, Inbound)
}

// dialGuest tries the client's own family first and then the other, as the gateway: a v6 client reaches a server that
// listens on IPv4 only, and the other way round.
func (t *Streams) dialGuest(client netip.AddrPort, port uint16) (*stack.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, guestDialTimeout)
	defer cancel()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	guest, gateway, otherGuest, otherGateway := t.cfg.Guest4, t.cfg.Gateway4, t.cfg.Guest6, t.cfg.Gateway6
	if client.Addr().Is6() {
		guest, gateway, otherGuest, otherGateway = otherGuest, otherGateway, guest, gateway
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
// or its own, and cannot answer a link-local one of another link: those clients appear as the gateway.
func (t *Streams) sourceFor(client netip.AddrPort, guest, gateway netip.Addr) netip.AddrPort {
	a := client.Addr()
	if a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.Zone() != "" || a == guest {
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
