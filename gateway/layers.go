package gateway

import (
	"fmt"
	"net"
	"net/netip"

	"rootlessnet/forwarder"
	"rootlessnet/netns"
	"rootlessnet/plan"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// This file translates a plan into the configuration of each package below.

// stackConfig is the gateway as a host on the guest's link.
func stackConfig(p *plan.Plan) stack.Config {
	a := p.Addrs
	c := stack.Config{
		Gateway4: a.Gateway, Gateway6: a.Gateway6, Subnet4: a.Subnet, Subnet6: a.Subnet6, Guest4: a.Guest, Guest6: a.Guest6,
		DNS: p.DNSAddresses(), SearchDomains: p.DNSSearch, Hostname: p.Hostname, MAC: p.GatewayMAC, MTU: p.MTU,
		HostAddresses: p.HostAddresses, NoDHCP: p.NoDHCP, NoRA: p.NoRA, NoNDP: p.NoNDP, DHCPv6: p.DHCPv6, TCPBuffers: p.TCPBuffers,
	}
	if n := p.Announced; n != nil {
		c.DNS, c.SearchDomains, c.FQDN = n.DNS, n.Search, n.FQDN
	}
	c.Guests = guestAddrs(p)
	for _, s := range p.Special {
		// An address that is forwarded elsewhere has its echo requests forwarded too; the stack answers for the others.
		if s.DNS || s.To != plan.ToNetwork && !(s.To == plan.ToHost && p.HostAddresses) {
			c.Local = append(c.Local, s.Addr)
		}
	}
	return c
}

// guestAddrs are the guest's own addresses.
func guestAddrs(p *plan.Plan) (list []netip.Addr) {
	for _, g := range p.GuestPrefixes {
		list = append(list, g.Addr())
	}
	return list
}

// targets translates the meanings of special addresses.
var targets = map[plan.SpecialTarget]policy.Target{
	plan.ToRefuse: policy.ToRefuse, plan.ToLoopback: policy.ToLoopback, plan.ToHost: policy.ToHost, plan.ToNetwork: policy.ToNetwork,
	plan.ToNoRoute: policy.ToNoRoute, plan.ToDrop: policy.ToDrop,
}

func policyConfig(p *plan.Plan, own hostAddrs) policy.Config {
	a := p.Addrs
	c := policy.Config{
		Gateway4: a.Gateway, Gateway6: a.Gateway6, Guest4: a.Guest, Guest6: a.Guest6,
		HostLoopback: policy.HostLoopback(p.HostLoopback), Host4: own.v4, Host6: own.v6, AllowMetadata: p.AllowMetadata,
		IPv4Off: !a.Gateway.IsValid(), IPv6Off: !a.Gateway6.IsValid(),
	}
	for _, g := range p.GuestPrefixes {
		own := g.Masked()
		if p.HostAddresses && !(p.Unconfigured && own.Addr().Is6()) { // a guest that configures itself forms addresses in the prefix (SLAAC)
			own = netip.PrefixFrom(g.Addr(), g.Addr().BitLen())
		}
		c.Sources = append(c.Sources, own)
	}
	if a.Gateway6.IsValid() {
		c.Sources = append(c.Sources, netip.PrefixFrom(netip.MustParseAddr("fe80::"), 10))
	}
	if !p.HostAddresses {
		c.Subnet4, c.Subnet6 = a.Subnet, a.Subnet6
	}
	for _, s := range p.Special {
		c.Special = append(c.Special, policy.Special{Addr: s.Addr, To: targets[s.To], Host: s.Host})
	}
	for _, off := range []struct {
		off    bool
		protos []policy.Proto
	}{{p.NoTCP, []policy.Proto{policy.TCP}}, {p.NoUDP, []policy.Proto{policy.UDP}}, {p.NoICMP, []policy.Proto{policy.ICMP, policy.ICMPv6}}} {
		if off.off {
			c.Off = append(c.Off, off.protos...)
		}
	}
	return c
}

// onLink are the prefixes that the guest takes to be on its link, where only the gateway answers. Nil with
// HostAddresses: the gateway then answers for all of their addresses.
func onLink(p *plan.Plan) (list []netip.Prefix) {
	if p.HostAddresses {
		return nil
	}
	for _, g := range p.GuestPrefixes {
		list = append(list, g.Masked())
	}
	return list
}

// Uplink is the guest's interface as the agent process inside the namespace has to make it.
func Uplink(p *plan.Plan) netns.Link {
	l := netns.Link{Kind: p.Link, Name: p.IfName, MTU: p.MTU, MAC: p.MAC, GatewayMAC: p.GatewayMAC,
		Addrs: p.GuestPrefixes, Deprecated: p.Deprecated, Gateways: p.Addrs.Gateways(), Bare: p.Unconfigured}
	if p.Routes != nil {
		l.Routes = []netns.Route{}
	}
	for _, r := range p.Routes {
		l.Routes = append(l.Routes, netns.Route(r))
	}
	return l
}

// addresses are the addresses and interfaces of the plan, as the forwarder needs them. It looks up the host's interfaces by name.
func addresses(p *plan.Plan, own hostAddrs) (to forwarder.Addresses, err error) {
	a := p.Addrs
	to = forwarder.Addresses{Gateway4: a.Gateway, Gateway6: a.Gateway6, Guest4: a.Guest, Guest6: a.Guest6,
		Guests: guestAddrs(p), Source4: p.Outbound.Addr, Source6: p.Outbound.Addr6, Host4: own.v4, Host6: own.v6}
	for _, out := range []struct {
		name  string
		index *int
	}{{p.Outbound.Interface, &to.Interface4}, {p.Outbound.Interface6, &to.Interface6}} {
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
