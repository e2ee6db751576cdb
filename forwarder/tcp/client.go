package tcp

import (
	"context"
	"errors"
	"net/netip"
	"syscall"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/spin"
	"rootlessnet/stack"
)

// Serve connects a client of a published port over the link, on a goroutine of its own. It takes every client.
func (p *Path) Serve(c *forwarder.Client) (spin.Result, bool) {
	p.f.Budget.TakeAnyway(fdbudget.Stack, 1) // here, because the port's listener checks what is free before its next accept
	go p.serve(c.FD, c.Addr, c.Port.Target())
	return spin.Yield, true
}

func (p *Path) serve(fd int, client netip.AddrPort, to forwarder.Target) {
	var asked netip.Addr
	if e := p.f.Endpoint(to.Endpoint); e != nil {
		asked = e.Asked(fd, client.Addr())
	}
	h, err := newHostConn(fd)
	if err != nil {
		p.f.Budget.Give(fdbudget.Stack, 1)
		return
	}
	h.budget, h.peer = p.f.Budget, client
	if !p.enter() {
		h.reset()
		return
	}
	defer p.wg.Done()
	defer func() {
		if e := recover(); e != nil {
			p.panicked(e)
			h.reset()
		}
	}()
	c, err := p.dialGuest(client, asked, to)
	if err != nil {
		h.reset() // the client of a closed port inside is reset
		return
	}
	p.run(c, h, nil)
}

// dialGuest tries the address that the client has asked first and then the other family, as the gateway: an IPv6 client reaches a
// server that listens on IPv4 only, and vice versa. Where the target has an address, only that is tried.
func (p *Path) dialGuest(client netip.AddrPort, asked netip.Addr, to forwarder.Target) (*stack.Conn, error) {
	p.f.TCP.Waiting.Add(1)
	defer p.f.TCP.Waiting.Add(-1)
	e := p.f.Endpoint(to.Endpoint)
	if e == nil {
		return nil, syscall.ENETUNREACH
	}
	ctx, cancel := context.WithTimeout(p.ctx, forwarder.GuestTimeout)
	defer cancel()
	now := e.Addresses()
	servers := []netip.Addr{asked, now.Guest6}
	if client.Addr().Is6() {
		servers[1] = now.Guest4
	}
	if a := to.Addr.Addr(); a.IsValid() {
		servers = []netip.Addr{a}
	}
	err := error(syscall.ECONNREFUSED)
	for _, server := range servers {
		if !server.IsValid() {
			continue
		}
		var c *stack.Conn
		c, err = p.dialGuestFrom(ctx, e.ClientSource(client, server), netip.AddrPortFrom(server, to.Addr.Port()))
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	return nil, err
}

// dialGuestFrom keeps the client's port unless that 4-tuple is in use: clients at two loopback addresses may use the same port.
func (p *Path) dialGuestFrom(ctx context.Context, src, dst netip.AddrPort) (*stack.Conn, error) {
	c, err := p.guest.DialTCP(ctx, src, dst)
	if errors.Is(err, syscall.EADDRINUSE) {
		c, err = p.guest.DialTCP(ctx, netip.AddrPortFrom(src.Addr(), 0), dst)
	}
	return c, err
}
