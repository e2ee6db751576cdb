package plan

import (
	"net"
	"net/netip"
	"slices"
)

// maxIfName is IFNAMSIZ (include/uapi/linux/if.h) without the final zero.
const maxIfName = 15

// ResolveAttach makes the plan of a network namespace that another program made. The error is a *UsageError.
func ResolveAttach(c *Config, t *Target, host Host) (*Plan, error) {
	named := 0
	for _, given := range []bool{t.PID != 0, t.NetNS != "", t.TAP != nil} {
		if given {
			named++
		}
	}
	switch {
	case named != 1:
		return nil, usage("Target", "a target is a process, a path or a TAP, and one of them")
	case t.PID < 0:
		return nil, usage("Target", "invalid process: %d", t.PID)
	case t.TAP != nil && (t.UserNS != "" || c.Configure):
		return nil, usage("Target", "conflicting options: a TAP is not configured from outside of its namespace")
	case t.TAP != nil && c.PublishAll:
		return nil, usage("PublishAll", "conflicting options: publish-all and a TAP")
	case c.Network != "":
		return nil, usage("Network", "conflicting options: network mode and attaching")
	}
	p := base(c)
	p.Network, p.Unconfigured = NetworkAttach, !c.Configure
	return p, p.complete(c, host)
}

// setPlan takes the addresses from a NetworkPlan.
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
			continue // the family is off
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
		p.Routes = []Route{} // none, and not the default ones
	}
	if err := p.setSpecial(n); err != nil {
		return err
	}
	p.HostAddresses = n.HostAddresses
	p.NoTCP, p.NoUDP, p.NoICMP, p.NoDHCP, p.NoRA = n.NoTCP, n.NoUDP, n.NoICMP, n.NoDHCP, n.NoRA
	p.NoNDP, p.DHCPv6, p.Announced, p.LoopbackToLoopback = n.NoNDP, n.DHCPv6, n.Announced, n.LoopbackToLoopback
	p.setMACs(c, n.GatewayMAC)
	return nil
}

// setSpecial gives every special address its meaning, the gateways' included.
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
			return usage("Plan", "the special address %s leads to no address of the host", s.Addr)
		case !slices.Contains([]SpecialTarget{Refuse, ToLoopback, ToHost, ToNetwork, NoRoute, Drop}, s.To):
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
			to := Refuse
			if n.HostAddresses {
				to = ToNetwork
			}
			p.Special = append(p.Special, SpecialAddr{Addr: g, To: to})
		}
	}
	return nil
}

// setMACs chooses the hardware addresses of both ends, which must differ.
func (p *Plan) setMACs(c *Config, gateway net.HardwareAddr) {
	a := &p.Addrs
	if p.GatewayMAC = slices.Clone(gateway); p.GatewayMAC == nil {
		p.GatewayMAC = macFor(a.Gateways()[0])
	}
	if p.MAC = slices.Clone(c.MAC); p.MAC == nil {
		if p.MAC = macFor(a.Guest6); a.Guest.IsValid() {
			p.MAC = macFor(a.Guest)
		}
	}
	if slices.Equal(p.MAC, p.GatewayMAC) {
		// The guest was given the very address ours is made of.
		p.GatewayMAC = slices.Clone(p.GatewayMAC)
		p.GatewayMAC[1] ^= 1
	}
}

// gateways are those of the families that are on, IPv4 first.
func (a *Addresses) Gateways() (list []netip.Addr) {
	for _, g := range []netip.Addr{a.Gateway, a.Gateway6} {
		if g.IsValid() {
			list = append(list, g)
		}
	}
	return list
}

// GatewayOf is the gateway of an address's family.
func (a *Addresses) GatewayOf(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return a.Gateway
	}
	return a.Gateway6
}

// dnsAddresses are those that answer DNS.
func (p *Plan) DNSAddresses() []netip.Addr {
	if p.dnsAddrs != nil {
		return p.dnsAddrs
	}
	return p.Addrs.Gateways()
}

// hostAddrs are the addresses that mean the host itself, and so the values of the host's names inside.
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
