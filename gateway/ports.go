package gateway

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"rootlessnet/forwarder/udp"
	"rootlessnet/internal/lockrank"
	"rootlessnet/plan"
)

// Ports lists the ports that are published now.
func (g *Gateway) Ports() []plan.Port { return g.ports.list() }

// AddPorts publishes all mappings or none, and returns the sockets that were bound.
func (g *Gateway) AddPorts(mappings []plan.PortMapping) ([]plan.Port, error) {
	added, err := g.ports.add(mappings, false)
	if err != nil {
		return nil, err
	}
	list := make([]plan.Port, len(added))
	for i, b := range added {
		list[i] = b.Port
	}
	return list, nil
}

// RemovePorts closes the published ports for which want returns true, and returns them.
func (g *Gateway) RemovePorts(want func(plan.Port) bool) []plan.Port { return g.ports.remove(want) }

// bound is one socket of a published port. It listens from the moment it is made; it is connected to the guest later.
type bound struct {
	plan.Port
	tcp     *net.TCPListener
	udp     *os.File
	stop    func()       // set when connected; closes the socket and what serves it
	udpPort *udp.UDPPort // set when connected, for UDP that is forwarded to the guest's own addresses
	// twin is set in two ports that one inherited socket serves, one for each address family. The second has no socket.
	twin *bound
}

// secondFamily is the port at ip that the socket of b serves too.
func (b *bound) secondFamily(ip netip.Addr) *bound {
	second := &bound{Port: b.Port, twin: b}
	second.HostIP, b.twin = ip, second
	return second
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

// ports are a sandbox's published ports. Safe for concurrent use.
type ports struct {
	inherited inherited

	change lockrank.Mutex // held while ports are added or removed
	lastID int            // of a mapping; guarded by change

	mu     lockrank.Mutex
	all    []*bound // guarded by mu
	closed bool     // guarded by mu
	g      *Gateway // guarded by mu; nil until connected
}

// bindPorts binds all mappings or none.
func bindPorts(mappings []plan.PortMapping, listeners []*os.File, log *slog.Logger) (*ports, error) {
	in, skipped, err := inheritedSockets(listeners)
	if err != nil {
		return nil, err
	}
	for _, f := range skipped {
		log.Info("an inherited descriptor is not used: it is neither a TCP nor a UDP socket", "descriptor", f.Name())
	}
	p := &ports{inherited: in}
	p.change.SetRank(lockrank.GatewayPortsChange)
	p.mu.SetRank(lockrank.GatewayPorts)
	if _, err := p.add(mappings, false); err != nil {
		return nil, err
	}
	return p, nil
}

// add publishes all mappings or none. Fixed ports are bound before those that the kernel chooses, which could otherwise be the same.
func (p *ports) add(mappings []plan.PortMapping, auto bool) (added []*bound, err error) {
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

// remove closes the ports for which want returns true, and returns them.
func (p *ports) remove(want func(plan.Port) bool) (removed []plan.Port) {
	p.change.Lock()
	defer p.change.Unlock()
	p.mu.Lock()
	var keep, drop []*bound
	for _, b := range p.all {
		if want(b.Port) || b.twin != nil && want(b.twin.Port) {
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

// list are the ports that are published now.
func (p *ports) list() []plan.Port {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]plan.Port, 0, len(p.all))
	for _, b := range p.all {
		list = append(list, b.Port)
	}
	return list
}

// connect forwards every port to the guest, and makes add do so for ports that are added later.
func (p *ports) connect(g *Gateway) error {
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

// readdress forwards datagrams to other addresses of the guest. For connections the forwarder does that when it makes them.
// all are all addresses of the guest.
func (p *ports) readdress(guest4, guest6 netip.Addr, all []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.all {
		if b.udpPort != nil {
			b.udpPort.SetGuests(guest4, guest6, all)
		}
	}
}
