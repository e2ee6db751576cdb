package rootlessnet

import (
	"net"
	"net/netip"
	"slices"
)

// networkAttach is the mode of a plan, and of a record, for a namespace that somebody else made.
const networkAttach = "attach"

// maxIfName is IFNAMSIZ (include/uapi/linux/if.h) without the final zero.
const maxIfName = 15

// attachPlan resolves c against the host for a target.
func (c *Config) attachPlan(t *Target, host hostView) (*plan, error) {
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
	p := c.basePlan()
	p.network, p.bare = networkAttach, !c.Configure
	return p, p.complete(c, host)
}

// setPlan takes the addresses from a NetworkPlan.
func (p *plan) setPlan(c *Config) error {
	n := c.Plan
	if c.Subnet.IsValid() || c.Subnet6.IsValid() || c.IP.IsValid() || c.IP6.IsValid() {
		return usage("Plan", "conflicting options: a plan and addresses beside it")
	}
	a := &p.addrs
	a.gateway, a.gateway6 = n.Gateway, n.Gateway6
	if a.gateway.IsValid() && !a.gateway.Is4() {
		return usage("Plan", "invalid IPv4 gateway: %s", a.gateway)
	}
	if g := a.gateway6; g.IsValid() && (!g.Is6() || g.Is4In6() || g.Zone() != "") {
		return usage("Plan", "invalid IPv6 gateway: %s", g)
	}
	if a.gateway6.IsValid() && p.mtu < MinMTU6 {
		p.warn("IPv6 is off: it needs an MTU of %d", MinMTU6)
		a.gateway6 = netip.Addr{}
	}
	for _, g := range n.Addrs {
		if !g.IsValid() || g.Addr().Is4In6() || g.Addr().Zone() != "" || g.Addr().IsUnspecified() || g.Addr().IsMulticast() {
			return usage("Plan", "invalid address: %s", g)
		}
		guest, subnet, gateway := &a.guest, &a.subnet, a.gateway
		if g.Addr().Is6() {
			guest, subnet, gateway = &a.guest6, &a.subnet6, a.gateway6
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
		p.guests = append(p.guests, g)
	}
	if a.gateway.IsValid() != a.guest.IsValid() || a.gateway6.IsValid() != a.guest6.IsValid() || len(p.guests) == 0 {
		return usage("Plan", "a gateway needs an address of its family, and the other way round")
	}
	for _, r := range n.Routes {
		if !r.Dst.IsValid() || r.Dst.Addr().Is4In6() || r.Gateway.IsValid() && r.Gateway.Is4() != r.Dst.Addr().Is4() {
			return usage("Plan", "invalid route: %s by %s", r.Dst, r.Gateway)
		}
		r.Dst = r.Dst.Masked()
		if p.addrs.gatewayOf(r.Dst.Addr()).IsValid() {
			p.routes = append(p.routes, r)
		}
	}
	if n.Routes != nil && p.routes == nil {
		p.routes = []Route{} // none, and not the default ones
	}
	if err := p.setSpecial(n); err != nil {
		return err
	}
	p.hostAddresses = n.HostAddresses
	p.noTCP, p.noUDP, p.noICMP, p.noDHCP, p.noRA = n.NoTCP, n.NoUDP, n.NoICMP, n.NoDHCP, n.NoRA
	p.noNDP, p.dhcpv6, p.announced, p.loopbackToLoopback = n.NoNDP, n.DHCPv6, n.Announced, n.LoopbackToLoopback
	p.setMACs(c, n.GatewayMAC)
	return nil
}

// setSpecial gives every special address its meaning, the gateways' included.
func (p *plan) setSpecial(n *NetworkPlan) error {
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
		case !slices.Contains([]SpecialTarget{ToNothing, ToLoopback, ToHost, ToNetwork, ToNowhere, ToSilence}, s.To):
			return usage("Plan", "invalid target of the special address %s: %q", s.Addr, s.To)
		}
		seen = append(seen, s.Addr)
		if s.DNS {
			p.dnsAddrs = append(p.dnsAddrs, s.Addr)
		}
		p.special = append(p.special, s)
	}
	for _, g := range p.addrs.gateways() {
		if !slices.Contains(seen, g) {
			to := ToNothing
			if n.HostAddresses {
				to = ToNetwork
			}
			p.special = append(p.special, SpecialAddr{Addr: g, To: to})
		}
	}
	return nil
}

// setMACs chooses the hardware addresses of both ends, which must differ.
func (p *plan) setMACs(c *Config, gateway net.HardwareAddr) {
	a := &p.addrs
	if p.gatewayMAC = slices.Clone(gateway); p.gatewayMAC == nil {
		p.gatewayMAC = macFor(a.gateways()[0])
	}
	if p.mac = slices.Clone(c.MAC); p.mac == nil {
		if p.mac = macFor(a.guest6); a.guest.IsValid() {
			p.mac = macFor(a.guest)
		}
	}
	if slices.Equal(p.mac, p.gatewayMAC) {
		// The guest was given the very address ours is made of.
		p.gatewayMAC = slices.Clone(p.gatewayMAC)
		p.gatewayMAC[1] ^= 1
	}
}

// gateways are those of the families that are on, IPv4 first.
func (a *addressPlan) gateways() (list []netip.Addr) {
	for _, g := range []netip.Addr{a.gateway, a.gateway6} {
		if g.IsValid() {
			list = append(list, g)
		}
	}
	return list
}

// gatewayOf is the gateway of an address's family.
func (a *addressPlan) gatewayOf(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return a.gateway
	}
	return a.gateway6
}

// dnsAddresses are those that answer DNS.
func (p *plan) dnsAddresses() []netip.Addr {
	if p.dnsAddrs != nil {
		return p.dnsAddrs
	}
	return p.addrs.gateways()
}

// hostAddrs are the addresses that mean the host itself, and so the values of the host's names inside.
func (p *plan) hostAddrs() (list []netip.Addr) {
	if p.special == nil {
		return p.addrs.gateways()
	}
	for _, s := range p.special {
		if s.To == ToLoopback || s.To == ToHost {
			list = append(list, s.Addr)
		}
	}
	return list
}
