package gateway

import (
	"net/netip"

	"rootlessnet/forwarder"
)

// connect forwards what the socket receives to the guest.
func (b *bound) connect(g *Gateway) error {
	if b.tcp != nil {
		p, err := g.streams.PublishTo(b.tcp, netip.AddrPortFrom(b.GuestIP, b.GuestPort))
		if err != nil {
			return err
		}
		b.stop = p.Close
		return nil
	}
	l := forwarder.UDPListen{File: b.udp}
	now := g.Plan().Addrs
	for _, a := range []netip.Addr{now.Guest, now.Guest6} {
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
	p, err := g.grams.ListenUDP(l)
	var lo *forwarder.LoopbackPort
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
