package plan

import (
	"net/netip"
	"slices"
)

// setPlan checks a NetworkPlan and copies it.
func (p *Plan) setPlan(c *Config) error {
	n := c.Plan
	if c.Subnet.IsValid() || c.Subnet6.IsValid() || c.IP.IsValid() || c.IP6.IsValid() {
		return usage("Plan", "conflicting options: a plan and addresses beside it")
	}
	a := &p.Addrs
	a.Gateway, a.Gateway6 = n.Gateway, n.Gateway6
	if a.Gateway.IsValid() && !a.Gateway.Is4() {
		return usage("Plan", "invalid IPv4 gateway: %s", a.Gateway)
	}
	if g := a.Gateway6; g.IsValid() && (!g.Is6() || g.Is4In6() || g.Zone() != "") {
		return usage("Plan", "invalid IPv6 gateway: %s", g)
	}
	if a.Gateway6.IsValid() && p.MTU < MinMTU6 {
		p.warn("IPv6 is off: it needs an MTU of %d", MinMTU6)
		a.Gateway6 = netip.Addr{}
	}
	for _, g := range n.Addrs {
		if !g.IsValid() || g.Addr().Is4In6() || g.Addr().Zone() != "" || g.Addr().IsUnspecified() || g.Addr().IsMulticast() {
			return usage("Plan", "invalid address: %s", g)
		}
		guest, subnet, gateway := &a.Guest, &a.Subnet, a.Gateway
		if g.Addr().Is6() {
			guest, subnet, gateway = &a.Guest6, &a.Subnet6, a.Gateway6
		}
		if !gateway.IsValid() {
			continue // the address family is off
		}
		if g.Addr() == gateway {
			return usage("Plan", "the address %s is the gateway's", g.Addr())
		}
		if !guest.IsValid() {
			*guest, *subnet = g.Addr(), g.Masked()
		}
		p.GuestPrefixes = append(p.GuestPrefixes, g)
	}
	if a.Gateway.IsValid() != a.Guest.IsValid() || a.Gateway6.IsValid() != a.Guest6.IsValid() || len(p.GuestPrefixes) == 0 {
		return usage("Plan", "a gateway needs an address of its family, and the other way round")
	}
	for _, r := range n.Routes {
		if !r.Dst.IsValid() || r.Dst.Addr().Is4In6() || r.Gateway.IsValid() && r.Gateway.Is4() != r.Dst.Addr().Is4() {
			return usage("Plan", "invalid route: %s by %s", r.Dst, r.Gateway)
		}
		r.Dst = r.Dst.Masked()
		if p.Addrs.GatewayOf(r.Dst.Addr()).IsValid() {
			p.Routes = append(p.Routes, r)
		}
	}
	if n.Routes != nil && p.Routes == nil {
		p.Routes = []Route{} // no routes, rather than the default routes
	}
	if err := p.setSpecial(n); err != nil {
		return err
	}
	p.HostAddresses, p.Deprecated = n.HostAddresses, n.Deprecated
	p.NoTCP, p.NoUDP, p.NoICMP, p.NoDHCP, p.NoRA = n.NoTCP, n.NoUDP, n.NoICMP, n.NoDHCP, n.NoRA
	p.NoNDP, p.DHCPv6, p.Announced, p.LoopbackToLoopback = n.NoNDP, n.DHCPv6, n.Announced, n.LoopbackToLoopback
	p.setMACs(c, n.GatewayMAC)
	return nil
}

// setSpecial checks and copies the special addresses, and adds a meaning for gateways that have none.
func (p *Plan) setSpecial(n *NetworkPlan) error {
	p.dnsAddrs = []netip.Addr{}
	var seen []netip.Addr
	for _, s := range n.Special {
		switch {
		case !s.Addr.IsValid() || s.Addr.Is4In6() || s.Addr.Zone() != "":
			return usage("Plan", "invalid special address: %s", s.Addr)
		case slices.Contains(seen, s.Addr):
			return usage("Plan", "the special address %s is there twice", s.Addr)
		case s.To == ToHost && !s.Host.IsValid():
			return usage("Plan", "the special address %s has no address of the host to forward to", s.Addr)
		case !slices.Contains([]SpecialTarget{ToRefuse, ToLoopback, ToHost, ToNetwork, ToNoRoute, ToDrop}, s.To):
			return usage("Plan", "invalid target of the special address %s: %q", s.Addr, s.To)
		}
		seen = append(seen, s.Addr)
		if s.DNS {
			p.dnsAddrs = append(p.dnsAddrs, s.Addr)
		}
		p.Special = append(p.Special, s)
	}
	for _, g := range p.Addrs.Gateways() {
		if !slices.Contains(seen, g) {
			to := ToRefuse
			if n.HostAddresses {
				to = ToNetwork
			}
			p.Special = append(p.Special, SpecialAddr{Addr: g, To: to})
		}
	}
	return nil
}

// DNSAddresses are the addresses on which the sandbox's resolver answers port 53.
func (p *Plan) DNSAddresses() []netip.Addr {
	if p.dnsAddrs != nil {
		return p.dnsAddrs
	}
	return p.Addrs.Gateways()
}

// HostAddrs are the addresses inside that are translated to the host; the host's names (host.docker.internal) resolve to them.
func (p *Plan) HostAddrs() (list []netip.Addr) {
	if p.Special == nil {
		return p.Addrs.Gateways()
	}
	for _, s := range p.Special {
		if s.To == ToLoopback || s.To == ToHost {
			list = append(list, s.Addr)
		}
	}
	return list
}

// ReachesHost reports whether an address inside leads to the host's own addresses, on the ports that are not those of its loopback.
func (p *Plan) ReachesHost() bool {
	if !p.HasGateway() || p.HostLoopback.All {
		return false
	}
	return p.Special == nil || slices.ContainsFunc(p.Special, func(s SpecialAddr) bool { return s.To == ToLoopback })
}
