package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"rootlessnet/api"
	"rootlessnet/forwarder"
)

// ephemeralTries bounds the search for a port that is free on IPv4 and on IPv6: one try fails only if the port the
// kernel chose for one family is taken on the other.
const ephemeralTries = 32

// bound is one socket of a published port. It listens from the moment it is made; it is connected to the guest later.
type bound struct {
	api.Port
	tcp  *net.TCPListener
	udp  *os.File
	stop func()             // set when connected; closes the socket and what stands behind it
	led  *forwarder.UDPPort // likewise, of UDP that leads to the guest's own addresses
}

func (b *bound) close() {
	switch {
	case b.stop != nil:
		b.stop()
	case b.tcp != nil:
		_ = b.tcp.Close()
	case b.udp != nil:
		_ = b.udp.Close()
	}
}

// ports is what a sandbox has published. Safe for concurrent use.
type ports struct {
	inherited map[inheritedKey]*os.File // bound by our caller; not changed

	change sync.Mutex // held while ports are added or removed
	lastID int        // of a mapping; guarded by change

	mu     sync.Mutex
	all    []*bound // guarded by mu
	closed bool     // guarded by mu
	g      *gateway // guarded by mu; nil until connected
}

type inheritedKey struct {
	proto string
	addr  netip.AddrPort
}

// bindPorts binds all mappings or none.
func bindPorts(mappings []PortMapping, listeners []*os.File) (*ports, error) {
	p := &ports{inherited: map[inheritedKey]*os.File{}}
	for _, f := range listeners {
		proto, addr, err := listenerAddr(f)
		if err != nil {
			return nil, err
		}
		p.inherited[inheritedKey{proto, addr}] = f
	}
	if _, err := p.add(mappings, false); err != nil {
		return nil, err
	}
	return p, nil
}

// add publishes all mappings or none. Fixed ports come before those left to choice.
func (p *ports) add(mappings []PortMapping, auto bool) (added []*bound, err error) {
	p.change.Lock()
	defer p.change.Unlock()
	defer func() {
		if err != nil {
			for _, b := range added {
				b.close()
			}
			added = nil
		}
	}()
	for _, choice := range []bool{false, true} {
		for _, m := range mappings {
			if choice != (m.Ephemeral() || m.HostPort != m.HostPortEnd) {
				continue
			}
			p.lastID++
			list, err := p.bind(m)
			for _, b := range list {
				b.ID = p.lastID
			}
			added = append(added, list...)
			if err != nil {
				return added, err
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return added, errors.New("the sandbox has ended")
	}
	for _, b := range added {
		b.Auto = auto
		if p.g != nil {
			if err := b.connect(p.g); err != nil {
				return added, err
			}
		}
	}
	p.all = append(p.all, added...)
	return added, nil
}

// remove closes the ports for which want says so, and returns them.
func (p *ports) remove(want func(api.Port) bool) (removed []api.Port) {
	p.change.Lock()
	defer p.change.Unlock()
	p.mu.Lock()
	var keep, drop []*bound
	for _, b := range p.all {
		if want(b.Port) {
			drop = append(drop, b)
			removed = append(removed, b.Port)
		} else {
			keep = append(keep, b)
		}
	}
	p.all = keep
	p.mu.Unlock()
	for _, b := range drop {
		b.close()
	}
	return removed
}

// list is what is published now.
func (p *ports) list() []api.Port {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]api.Port, 0, len(p.all))
	for _, b := range p.all {
		list = append(list, b.Port)
	}
	return list
}

// connect leads every port to the guest, now and for those to come.
func (p *ports) connect(g *gateway) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.g = g
	for _, b := range p.all {
		if err := b.connect(g); err != nil {
			return err
		}
	}
	return nil
}

func (p *ports) close() {
	p.mu.Lock()
	all := p.all
	p.all, p.closed = nil, true
	p.mu.Unlock()
	for _, b := range all {
		b.close()
	}
}

// bind listens for one mapping: on one address, or on every address of both families with the same port.
func (p *ports) bind(m PortMapping) (list []*bound, err error) {
	switch {
	case m.Ephemeral():
		for range ephemeralTries {
			if list, err = p.bindPort(m, 0); !errors.Is(err, syscall.EADDRINUSE) {
				break
			}
		}
		return list, err
	default:
		for port := int(m.HostPort); port <= int(m.HostPortEnd); port++ {
			if list, err = p.bindPort(m, uint16(port)); err == nil {
				return list, nil
			}
		}
		return nil, err
	}
}

func (p *ports) bindPort(m PortMapping, port uint16) (list []*bound, err error) {
	ips := m.listenIPs()
	for _, ip := range ips {
		b, err := p.listen(m, netip.AddrPortFrom(ip, port))
		if err != nil {
			if ip.Is6() && len(ips) > 1 && noIPv6(err) {
				continue // a host without IPv6: the other family is all there is
			}
			for _, b := range list {
				b.close()
			}
			return nil, err
		}
		port = b.HostPort // the kernel's choice for the first is asked for on the second
		list = append(list, b)
	}
	return list, nil
}

func noIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// listen makes one socket, or takes one that our caller has bound to the same address.
func (p *ports) listen(m PortMapping, addr netip.AddrPort) (*bound, error) {
	b := &bound{Port: api.Port{Proto: m.Proto, HostIP: addr.Addr(), HostPort: addr.Port(), GuestIP: m.GuestIP.Unmap(), GuestPort: m.GuestPort}}
	family := "6" // an IPv6 socket of this name is for IPv6 only
	if addr.Addr().Is4() {
		family = "4"
	}
	inherited := p.inherited[inheritedKey{m.Proto, addr}]
	if m.Proto == "udp" {
		var c net.PacketConn
		var err error
		if inherited != nil {
			c, err = net.FilePacketConn(inherited)
		} else {
			c, err = net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(addr))
		}
		if err != nil {
			return nil, bindError(m.Proto, addr, err)
		}
		defer c.Close()
		u, ok := c.(*net.UDPConn)
		if !ok {
			return nil, fmt.Errorf("inherited socket for %s/udp is not UDP", addr)
		}
		b.HostPort = u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		if b.udp, err = u.File(); err != nil {
			return nil, bindError(m.Proto, addr, err)
		}
		return b, nil
	}
	var l net.Listener
	var err error
	if inherited != nil {
		l, err = net.FileListener(inherited)
	} else {
		// Plain TCP: package net's default is MPTCP, whose sockets neither splice nor know urgent data. Its clients fall back.
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp"+family, addr.String())
	}
	if err != nil {
		return nil, bindError(m.Proto, addr, err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("inherited socket for %s/tcp is not TCP", addr)
	}
	b.tcp, b.HostPort = t, t.Addr().(*net.TCPAddr).AddrPort().Port()
	return b, nil
}

// connect leads the socket to the guest.
func (b *bound) connect(g *gateway) error {
	if b.tcp != nil {
		p, err := g.streams.PublishTo(b.tcp, netip.AddrPortFrom(b.GuestIP, b.GuestPort))
		if err != nil {
			return err
		}
		b.stop = p.Close
		return nil
	}
	l := forwarder.UDPListen{File: b.udp}
	now := g.s.current().addrs
	for _, a := range []netip.Addr{now.guest, now.guest6} {
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
	if err == nil && g.loopback != nil && !b.GuestIP.IsValid() && (b.HostIP.IsUnspecified() || b.HostIP.IsLoopback()) {
		if lo, err = b.listenLoopback(g.loopback); err != nil {
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
		b.led = p
	}
	return nil
}

// readdress leads datagrams to other addresses of the guest; for connections that is done where they are made.
func (p *ports) readdress(guest4, guest6 netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.all {
		if b.led != nil {
			b.led.SetGuests(guest4, guest6)
		}
	}
}
