package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"rootlessnet/forwarder"
)

// SetNetwork changes, while it runs, the network of a sandbox that was made with a Plan: it takes Plan and what
// begins with Outbound of c, and nothing else. The addresses, routes and meanings of addresses in the Plan are new from then on,
// inside the namespace too where Configure was set; hardware addresses, the addresses that answer DNS and the switches
// (NoTCP and its like) are those of the beginning, and a family that was off then stays off. Connections go on by
// whatever address is there before and after. An error says that nothing has changed, or what could not be changed in the
// namespace.
func (b *Sandbox) SetNetwork(c Config) error { return b.s.setNetwork(&c) }

// current is the plan with the addresses that are in force.
func (s *sandbox) current() *plan {
	if p := s.now.Load(); p != nil {
		return p
	}
	return s.plan
}

func (s *sandbox) setNetwork(c *Config) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	old := s.current()
	if s.cfg.Plan == nil || c.Plan == nil {
		return errors.New("only a network that was planned can be planned anew")
	}
	now, err := old.readdressed(c)
	if err != nil {
		return err
	}
	g, a := s.net, now.addrs
	to, err := c.forwarding(now)
	if err != nil {
		return err
	}
	// From the outside to the inside: when the guest gets an address, it is known already. With the policy's meanings the
	// flows are judged again.
	if err := g.stack.SetAddresses(now.stackConfig()); err != nil {
		return err
	}
	g.policy.Set(now.policyConfig(s.cfg.AllowMetadata))
	g.streams.SetAddresses(to)
	g.grams.SetAddresses(to)
	s.now.Store(now)
	g.ports.readdress(a.guest, a.guest6)
	if err := g.resolver.SetNames(g.names()); err != nil {
		return err
	}
	(*backend)(s).recordPorts()
	if s.ns == nil || now.bare {
		return nil
	}
	if err := s.ns.Relink(context.Background(), now.userLink()); err != nil {
		return fmt.Errorf("addresses of %s: %w", now.ifName, err)
	}
	return nil
}

// forwarding is what the forwarder has to know of addresses.
func (c *Config) forwarding(p *plan) (to forwarder.Addresses, err error) {
	a := p.addrs
	to = forwarder.Addresses{Gateway4: a.gateway, Gateway6: a.gateway6, Guest4: a.guest, Guest6: a.guest6,
		Guests: p.guestAddrs(), Source4: c.OutboundAddr, Source6: c.OutboundAddr6}
	for _, out := range []struct {
		name  string
		index *int
	}{{c.OutboundIf, &to.Interface4}, {c.OutboundIf6, &to.Interface6}} {
		if out.name == "" {
			continue
		}
		i, err := net.InterfaceByName(out.name)
		if err != nil {
			return to, fmt.Errorf("outbound interface %s: %w", out.name, err)
		}
		*out.index = i.Index
	}
	return to, nil
}

// readdressed is p with what c.Plan says of addresses.
func (p *plan) readdressed(c *Config) (*plan, error) {
	now := *p
	now.addrs, now.guests, now.routes, now.special, now.dnsAddrs, now.warnings = addressPlan{}, nil, nil, nil, nil, nil
	if err := now.setPlan(&Config{Plan: c.Plan}); err != nil {
		return nil, err
	}
	switch {
	case now.addrs.gateway.IsValid() != p.addrs.gateway.IsValid() || now.addrs.gateway6.IsValid() != p.addrs.gateway6.IsValid():
		return nil, usage("Plan", "a family cannot be turned on or off")
	case !slices.Equal(now.dnsAddrs, p.dnsAddrs):
		return nil, usage("Plan", "the addresses that answer DNS cannot be changed")
	}
	now.mac, now.gatewayMAC, now.hostAddresses = p.mac, p.gatewayMAC, p.hostAddresses
	now.noTCP, now.noUDP, now.noICMP, now.noDHCP, now.noRA = p.noTCP, p.noUDP, p.noICMP, p.noDHCP, p.noRA
	now.noNDP, now.dhcpv6, now.loopbackToLoopback = p.noNDP, p.dhcpv6, p.loopbackToLoopback
	return &now, nil
}
