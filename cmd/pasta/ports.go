package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/pasta"
)

// portPlan is what -t and -u ask for before anything is followed.
type portPlan struct {
	strong  []rootlessnet.PortMapping // named by number: all or nothing
	weak    []rootlessnet.PortMapping // as far as they are free
	devices []deviceBind
	sockets []*os.File
}

// deviceBind is a port on one interface: we bind it, and the engine finds it bound.
type deviceBind struct {
	proto, device string
	addr          netip.AddrPort
}

func newPortPlan(o *pasta.Options) *portPlan {
	p := new(portPlan)
	for _, spec := range []struct {
		proto string
		*pasta.PortSpec
	}{{"tcp", &o.TCP}, {"udp", &o.UDP}} {
		for _, r := range spec.Rules {
			p.addRule(o, spec.proto, r)
		}
	}
	return p
}

func (p *portPlan) addRule(o *pasta.Options, proto string, r pasta.PortRule) {
	addrs := []netip.Addr{r.Addr}
	switch {
	case r.Addr.IsValid() && (r.Addr.Is4() && o.IPv4Off || r.Addr.Is6() && o.IPv6Off):
		return
	case r.Addr.IsValid():
	case o.IPv4Off:
		addrs[0] = netip.IPv6Unspecified()
	case o.IPv6Off:
		addrs[0] = netip.IPv4Unspecified()
	case r.Interface != "":
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for _, a := range addrs {
		for n := range uint32(r.Last-r.First) + 1 {
			port, to := r.First+uint16(n), r.To+uint16(n)
			m := rootlessnet.PortMapping{Proto: proto, HostIP: a, HostPort: port, HostPortEnd: port, GuestPort: to}
			if r.Weak {
				p.weak = append(p.weak, m)
			} else {
				p.strong = append(p.strong, m)
			}
			if r.Interface != "" {
				p.devices = append(p.devices, deviceBind{proto, r.Interface, netip.AddrPortFrom(a, port)})
			}
		}
	}
}

// bind makes the sockets that belong to one interface, and hands them to the engine.
func (p *portPlan) bind(c *rootlessnet.Config) error {
	for _, d := range p.devices {
		f, err := d.bind()
		if err != nil {
			return fmt.Errorf("Failed to bind port %d (%w) on interface %s", d.addr.Port(), err, d.device)
		}
		p.sockets = append(p.sockets, f)
	}
	c.Listeners = p.sockets
	p.sockets = nil
	return nil
}

func (d deviceBind) bind() (*os.File, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var berr error
		err := rc.Control(func(fd uintptr) { berr = unix.BindToDevice(int(fd), d.device) })
		return errors.Join(err, berr)
	}}
	lc.SetMultipathTCP(false) // its sockets neither splice nor know urgent data
	family := "6"
	if d.addr.Addr().Is4() {
		family = "4"
	}
	if d.proto == "udp" {
		c, err := lc.ListenPacket(context.Background(), "udp"+family, d.addr.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.UDPConn).File()
	}
	l, err := lc.Listen(context.Background(), "tcp"+family, d.addr.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

func (p *portPlan) closeSockets() {
	for _, f := range p.sockets {
		_ = f.Close()
	}
}

// add opens the ports.
func (p *portPlan) add(box *rootlessnet.Sandbox) error {
	if len(p.strong) > 0 {
		if _, err := box.AddMappings(p.strong...); err != nil {
			return fmt.Errorf("Failed to bind: %w", err)
		}
	}
	opened := 0
	var last error
	for _, m := range p.weak {
		if _, err := box.AddMappings(m); err != nil {
			last = err
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				break
			}
			continue
		}
		opened++
	}
	if len(p.weak) > 0 && opened == 0 {
		return fmt.Errorf("Failed to bind any port: %w", last)
	}
	return nil
}
