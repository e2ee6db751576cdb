package rootlessnet

import (
	"net/netip"

	"rootlessnet/netns"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// What a plan means to each of the layers below.

// stackConfig is the gateway as it stands on the guest's link.
func (p *plan) stackConfig() stack.Config {
	a := p.addrs
	c := stack.Config{
		Gateway4: a.gateway, Gateway6: a.gateway6, Subnet4: a.subnet, Subnet6: a.subnet6, Guest4: a.guest, Guest6: a.guest6,
		DNS: p.dnsAddresses(), SearchDomains: p.dnsSearch, Hostname: p.hostname, MAC: p.gatewayMAC, MTU: p.mtu,
		HostAddresses: p.hostAddresses, NoDHCP: p.noDHCP, NoRA: p.noRA, NoNDP: p.noNDP, DHCPv6: p.dhcpv6,
	}
	if n := p.announced; n != nil {
		c.DNS, c.SearchDomains, c.FQDN = n.DNS, n.Search, n.FQDN
	}
	c.Guests = p.guestAddrs()
	for _, s := range p.special {
		// What leads elsewhere answers its pings there, or not at all.
		if s.DNS || s.To != ToNetwork && !(s.To == ToHost && p.hostAddresses) {
			c.Local = append(c.Local, s.Addr)
		}
	}
	return c
}

// guestAddrs are the guest's own addresses.
func (p *plan) guestAddrs() (list []netip.Addr) {
	for _, g := range p.guests {
		list = append(list, g.Addr())
	}
	return list
}

// targets are the policy's words for ours.
var targets = map[SpecialTarget]policy.Target{
	ToNothing: policy.ToRefuse, ToLoopback: policy.ToLoopback, ToHost: policy.ToHost, ToNetwork: policy.ToNetwork,
	ToNowhere: policy.ToNoRoute, ToSilence: policy.ToDrop,
}

func (p *plan) policyConfig(allowMetadata bool) policy.Config {
	a := p.addrs
	c := policy.Config{
		Gateway4: a.gateway, Gateway6: a.gateway6, Guest4: a.guest, Guest6: a.guest6,
		HostLoopback: policy.HostLoopback(p.hostLoopback), AllowMetadata: allowMetadata,
		IPv4Off: !a.gateway.IsValid(), IPv6Off: !a.gateway6.IsValid(),
	}
	for _, g := range p.guests {
		own := g.Masked()
		if p.hostAddresses && !(p.bare && own.Addr().Is6()) { // a guest that configures itself makes addresses of the prefix
			own = netip.PrefixFrom(g.Addr(), g.Addr().BitLen())
		}
		c.Sources = append(c.Sources, own)
	}
	if a.gateway6.IsValid() {
		c.Sources = append(c.Sources, netip.PrefixFrom(netip.MustParseAddr("fe80::"), 10))
	}
	if !p.hostAddresses {
		c.Subnet4, c.Subnet6 = a.subnet, a.subnet6
	}
	for _, s := range p.special {
		c.Special = append(c.Special, policy.Special{Addr: s.Addr, To: targets[s.To], Host: s.Host})
	}
	for _, off := range []struct {
		off    bool
		protos []policy.Proto
	}{{p.noTCP, []policy.Proto{policy.TCP}}, {p.noUDP, []policy.Proto{policy.UDP}}, {p.noICMP, []policy.Proto{policy.ICMP, policy.ICMPv6}}} {
		if off.off {
			c.Off = append(c.Off, off.protos...)
		}
	}
	return c
}

// subnets are the prefixes whose addresses the guest looks for on its link, and does not find but by us.
func (p *plan) subnets() (list []netip.Prefix) {
	if p.hostAddresses {
		return nil // there it finds all of them
	}
	for _, g := range p.guests {
		list = append(list, g.Masked())
	}
	return list
}

// link is the uplink as the agent inside has to make it.
func (p *plan) userLink() netns.Link {
	l := netns.Link{Kind: p.link, Name: p.ifName, MTU: p.mtu, MAC: p.mac, GatewayMAC: p.gatewayMAC,
		Addrs: p.guests, Gateways: p.addrs.gateways(), Bare: p.bare}
	if p.routes != nil {
		l.Routes = []netns.Route{}
	}
	for _, r := range p.routes {
		l.Routes = append(l.Routes, netns.Route(r))
	}
	return l
}
