package gateway

import (
	"net/netip"

	"rootlessnet/forwarder"
	"rootlessnet/forwarder/loopback"
	"rootlessnet/forwarder/udp"
)

// connect forwards what the socket receives to the guest.
func (b *bound) connect(g *Gateway) error {
	if b.tcp == nil && b.udp == nil {
		return nil // its twin serves it
	}
	if b.tcp != nil {
		p, err := g.forwarder.PublishTCP(b.tcp, forwarder.Target{Endpoint: guestID, Addr: netip.AddrPortFrom(b.GuestIP, b.GuestPort)}, g.clientServers()...)
		if err != nil {
			return err
		}
		b.stop = p.Close
		return nil
	}
	l := udp.UDPListen{Endpoint: guestID, File: b.udp}
	now := g.Plan()
	if !b.GuestIP.IsValid() {
		l.Guests = guestAddrs(now)
	}
	for _, a := range []netip.Addr{now.Addrs.Guest, now.Addrs.Guest6} {
		if b.GuestIP.IsValid() {
			a = b.GuestIP
		}
		switch to := netip.AddrPortFrom(a, b.GuestPort); {
		case a.Is4():
			l.Guest4 = to
		case a.Is6():
			l.Guest6 = to
		}
	}
	p, err := g.udp.ListenUDP(l)
	var lo *loopback.Port
	if err == nil && g.loopbackClients != nil && !b.GuestIP.IsValid() && (b.HostIP.IsUnspecified() || b.HostIP.IsLoopback()) {
		if lo, err = b.listenLoopback(g.loopbackClients); err != nil {
			_ = p.Close()
		}
	}
	_ = b.udp.Close() // it was duplicated
	b.udp = nil
	if err != nil {
		return err
	}
	b.stop = func() {
		_ = p.Close()
		if lo != nil {
			lo.Close()
		}
	}
	if !b.GuestIP.IsValid() {
		b.udpPort = p
	}
	return nil
}
