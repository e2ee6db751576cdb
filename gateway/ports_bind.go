package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"rootlessnet/internal/bindaddr"
	"rootlessnet/plan"
)

// ephemeralTries bounds the search for a port that is free on IPv4 and on IPv6: one try fails only if the port the
// kernel chose for one family is taken on the other.
const ephemeralTries = 32

// bind listens for one mapping: on one address, or on every address of both families with the same port.
func (p *ports) bind(m plan.PortMapping) (list []*bound, err error) {
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

func (p *ports) bindPort(m plan.PortMapping, port uint16) (list []*bound, err error) {
	ips := m.ListenIPs()
	for _, ip := range ips {
		if len(list) > 0 && p.sameSocket(m.Proto, list[0].Host(), netip.AddrPortFrom(ip, port)) {
			list = append(list, list[0].secondFamily(ip))
			continue
		}
		b, err := p.listen(m, netip.AddrPortFrom(ip, port))
		if err != nil {
			if ip.Is6() && len(ips) > 1 && bindaddr.NoIPv6(err) {
				continue // a host without IPv6 has only the other family
			}
			for _, b := range list {
				b.close()
			}
			return nil, err
		}
		port = b.HostPort // the second family is bound to the port that the kernel chose for the first
		list = append(list, b)
	}
	return list, nil
}

// sameSocket reports whether one inherited socket is bound to both addresses.
func (p *ports) sameSocket(proto string, a, b netip.AddrPort) bool {
	f := p.inherited[inheritedKey{proto, a}]
	return f != nil && f == p.inherited[inheritedKey{proto, b}]
}

// listen makes one socket, or takes the inherited one that is bound to the same address.
func (p *ports) listen(m plan.PortMapping, addr netip.AddrPort) (*bound, error) {
	b := &bound{Port: plan.Port{Proto: m.Proto, HostIP: addr.Addr(), HostPort: addr.Port(), GuestIP: m.GuestIP.Unmap(), GuestPort: m.GuestPort}}
	inherited := p.inherited[inheritedKey{m.Proto, addr}]
	var err error
	if m.Proto == "udp" {
		b.udp, b.HostPort, err = listenUDP(addr, inherited)
	} else {
		b.tcp, b.HostPort, err = listenTCP(addr, inherited)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// listenTCP listens on addr, or takes an inherited listener. It returns the port that is bound.
func listenTCP(addr netip.AddrPort, inherited *os.File) (*net.TCPListener, uint16, error) {
	if inherited == nil {
		t, err := bindaddr.ListenTCP(addr)
		if err != nil {
			return nil, 0, bindaddr.DockerError("tcp", addr, err)
		}
		return t, t.Addr().(*net.TCPAddr).AddrPort().Port(), nil
	}
	l, err := net.FileListener(inherited)
	if err != nil {
		return nil, 0, bindaddr.DockerError("tcp", addr, err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, 0, fmt.Errorf("inherited socket for %s/tcp is not TCP", addr)
	}
	return t, t.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

// listenUDP binds addr, or takes an inherited socket. It returns the port that is bound.
func listenUDP(addr netip.AddrPort, inherited *os.File) (*os.File, uint16, error) {
	var c net.PacketConn
	var err error
	if inherited != nil {
		c, err = net.FilePacketConn(inherited)
	} else {
		c, err = net.ListenUDP(bindaddr.Network("udp", addr), net.UDPAddrFromAddrPort(addr))
	}
	if err != nil {
		return nil, 0, bindaddr.DockerError("udp", addr, err)
	}
	defer c.Close()
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, 0, fmt.Errorf("inherited socket for %s/udp is not UDP", addr)
	}
	f, err := u.File()
	if err != nil {
		return nil, 0, bindaddr.DockerError("udp", addr, err)
	}
	return f, u.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}
