package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/pasta"
)

// portPlan holds the ports of -t, -u, -T and -U, except those with "auto", which the follower opens.
type portPlan struct {
	required []rootlessnet.PortMapping // given by number: all of them must be free
	optional []rootlessnet.PortMapping // not given by number: those that are free are opened
	devices  []deviceBind
	// requiredNS and optionalNS are the same for ports of the namespace's loopback (-T, -U).
	requiredNS, optionalNS []rootlessnet.LoopbackForward
	sockets                []*os.File // opened by bind, which then moves them to Config.Listeners
}

// deviceBind is a port that is opened on one interface of the host. This program binds the socket and passes it to the library,
// which uses it for the port mapping of the same address.
type deviceBind struct {
	proto, device string
	addr          netip.AddrPort
}

func newPortPlan(o *pasta.Options) *portPlan {
	p := new(portPlan)
	for _, spec := range specs(o) {
		for _, r := range spec.Rules {
			switch {
			case r.Auto:
			case spec.fromNS:
				p.addLoopback(spec.proto, r)
			default:
				p.addRule(o, spec.proto, r)
			}
		}
	}
	return p
}

// portSpec holds the rules of one protocol and direction.
type portSpec struct {
	*pasta.PortSpec
	proto  string
	fromNS bool // from the namespace's loopback to the host's
}

// specs returns the rules of the protocols that are enabled.
func specs(o *pasta.Options) (list []portSpec) {
	if !o.NoTCP {
		list = append(list, portSpec{&o.TCP, "tcp", false}, portSpec{&o.TCPNS, "tcp", true})
	}
	if !o.NoUDP {
		list = append(list, portSpec{&o.UDP, "udp", false}, portSpec{&o.UDPNS, "udp", true})
	}
	return list
}

func (p *portPlan) addLoopback(proto string, r pasta.PortRule) {
	for n := range uint32(r.Last-r.First) + 1 {
		port := r.First + uint16(n)
		f := rootlessnet.LoopbackForward{Proto: proto, Port: port, HostPort: r.Target(port)}
		if r.Weak {
			p.optionalNS = append(p.optionalNS, f)
		} else {
			p.requiredNS = append(p.requiredNS, f)
		}
	}
}

// hostAddrs returns the host's addresses that a rule opens ports on. The zero value means every address of both families.
func hostAddrs(o *pasta.Options, r pasta.PortRule) []netip.Addr {
	switch {
	case r.Addr.IsValid() && (r.Addr.Is4() && o.IPv4Off || r.Addr.Is6() && o.IPv6Off):
		return nil
	case r.Addr.IsValid():
		return []netip.Addr{r.Addr}
	case o.IPv4Off:
		return []netip.Addr{netip.IPv6Unspecified()}
	case o.IPv6Off:
		return []netip.Addr{netip.IPv4Unspecified()}
	case r.Interface != "":
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	return []netip.Addr{{}}
}

func (p *portPlan) addRule(o *pasta.Options, proto string, r pasta.PortRule) {
	for _, a := range hostAddrs(o, r) {
		for n := range uint32(r.Last-r.First) + 1 {
			port := r.First + uint16(n)
			m := rootlessnet.PortMapping{Proto: proto, HostIP: a, HostPort: port, HostPortEnd: port, GuestPort: r.Target(port)}
			if r.Weak {
				p.optional = append(p.optional, m)
			} else {
				p.required = append(p.required, m)
			}
			if r.Interface != "" {
				p.devices = append(p.devices, deviceBind{proto, r.Interface, netip.AddrPortFrom(a, port)})
			}
		}
	}
}

// bind opens the sockets that are bound to one interface and passes them to the library in c.Listeners, which then owns them.
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
	lc.SetMultipathTCP(false) // MPTCP sockets support neither splice(2) nor urgent data
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

// add opens the ports. It returns an error if a port that was given by number is not free, or if of the others not a single one
// is free.
func (p *portPlan) add(box *rootlessnet.Sandbox, log *slog.Logger) error {
	if len(p.required) > 0 {
		if _, err := box.AddMappings(p.required...); err != nil {
			return fmt.Errorf("Failed to bind: %w", err)
		}
	}
	switch opened, err := addOptional(box, p.optional, func(rootlessnet.PortMapping, error) {}); {
	case len(p.optional) > 0 && opened == 0:
		return fmt.Errorf("Failed to bind any port: %w", err)
	case errors.Is(err, syscall.EMFILE):
		log.Warn("the limit of open files is reached: not all ports are open, and connections may fail; raise the limit or publish fewer ports",
			"open", opened, "of", len(p.optional), "err", err)
	}
	return p.addLoopbacks(box, log)
}

// addOptional opens those ports of list that are free, up to the limit of open files: first all of them in one call, and after a
// failure each half separately. One call per port would take minutes for all ports, because each call writes the sandbox's state
// file. refused is called for each port that is not open; last is the last error.
func addOptional(box adder, list []rootlessnet.PortMapping, refused func(rootlessnet.PortMapping, error)) (opened int, last error) {
	if len(list) == 0 {
		return 0, nil
	}
	_, err := box.AddMappings(list...)
	if err == nil {
		return len(list), nil
	}
	if len(list) == 1 {
		refused(list[0], err)
		return 0, err
	}
	half := len(list) / 2
	for _, part := range [][]rootlessnet.PortMapping{list[:half], list[half:]} {
		if errors.Is(last, syscall.EMFILE) || errors.Is(last, syscall.ENFILE) {
			for _, m := range part {
				refused(m, last)
			}
			continue
		}
		n, err := addOptional(box, part, refused)
		opened += n
		if err != nil {
			last = err
		}
	}
	return opened, last
}

// adder is implemented by rootlessnet.Sandbox.
type adder interface {
	AddMappings(...rootlessnet.PortMapping) ([]rootlessnet.Port, error)
}

// addLoopbacks opens the ports of the namespace's loopback.
func (p *portPlan) addLoopbacks(box *rootlessnet.Sandbox, log *slog.Logger) error {
	if len(p.requiredNS) > 0 {
		if _, err := box.AddLoopbackForwards(p.requiredNS...); err != nil {
			return fmt.Errorf("Failed to bind in the namespace: %w", err)
		}
	}
	for _, proto := range []string{"tcp", "udp"} {
		var list []rootlessnet.LoopbackForward
		for _, f := range p.optionalNS {
			if f.Proto == proto {
				list = append(list, f)
			}
		}
		if len(list) == 0 {
			continue
		}
		// AddLoopbackForwards opens as many as it can: it skips ports that are in use or exceed the limit of open files.
		opened, err := box.AddLoopbackForwards(list...)
		switch {
		case len(opened) == 0:
			return fmt.Errorf("Failed to bind any port in the namespace: %w", err)
		case errors.Is(err, syscall.EMFILE):
			log.Warn("the limit of open files is reached: not all ports of the namespace are open; raise the limit or forward fewer ports",
				"proto", proto, "open", len(opened), "of", len(list), "err", err)
		}
	}
	return nil
}
