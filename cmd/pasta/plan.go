package main

import (
	"net/netip"
	"slices"

	"rootlessnet"
	"rootlessnet/internal/pasta"
)

// Addresses and gateways of a namespace if the host has no interface to copy from. They are link-local, as with the original.
var (
	noHostAddr4    = netip.MustParsePrefix("169.254.2.1/16")
	noHostGateway4 = netip.MustParseAddr("169.254.2.2")
	noHostAddr6    = netip.MustParsePrefix("fe80::2/64")
	noHostGateway6 = netip.MustParseAddr("fe80::1")
)

// defaultIfName is the name of the guest's interface if the host has no interface to take the name from.
const defaultIfName = "tap0"

// defaultBits6 is the prefix length of an IPv6 address given without one.
const defaultBits6 = 64

// unsetMTU is the MTU that the kernel gives a new TAP device; --mtu 0 keeps it.
const unsetMTU = 1500

// config translates the options into a Config of the library, on a host with the templates t4 and t6.
func config(o *pasta.Options, t4, t6 template) rootlessnet.Config {
	c := rootlessnet.Config{
		IfName: o.IfName, MTU: o.MTU, MAC: o.NSMAC, Configure: o.ConfigNet, OutboundAddr: o.Out4, OutboundAddr6: o.Out6, OutboundIf: o.Out4If, OutboundIf6: o.Out6If, PCAP: o.PCAP,
		Hostname: o.Hostname, APISocket: o.ControlSocket, DNS: o.DNSHost, AllowMetadata: true, Confine: true,
		UDPFullCone: true, // the original looks at the port only to which a datagram comes
	}
	if o.NoSplice {
		c.Datapath = rootlessnet.DatapathStack
	}
	for _, name := range []string{t4.ifName, t6.ifName, defaultIfName} {
		if c.IfName == "" {
			c.IfName = name
		}
	}
	if c.MTU == 0 {
		c.MTU = unsetMTU
	}
	p := &rootlessnet.NetworkPlan{
		GatewayMAC: o.MAC, Routes: []rootlessnet.Route{}, HostAddresses: true,
		NoTCP: o.NoTCP, NoUDP: o.NoUDP, NoICMP: o.NoICMP, NoDHCP: o.NoDHCP, NoRA: o.NoRA,
		NoNDP: o.NoNDP, DHCPv6: !o.NoDHCPv6, LoopbackToLoopback: o.HostLoToNSLo && !o.NoSplice, Announced: &rootlessnet.Announced{FQDN: o.FQDN},
	}
	announce(o, p.Announced)
	c.Plan = p
	if !o.IPv4Off {
		p.Gateway = addFamily(o, p, t4, false)
	}
	if !o.IPv6Off && c.MTU >= rootlessnet.MinMTU6 {
		p.Gateway6 = addFamily(o, p, t6, true)
	}
	addSpecial(o, &c, t4, t6)
	return c
}

// addFamily adds the addresses and routes of one family, and returns its gateway.
func addFamily(o *pasta.Options, p *rootlessnet.NetworkPlan, t template, v6 bool) netip.Addr {
	addrs := given(o, t, v6)
	own := len(addrs) > 0
	if !own {
		if addrs = t.addrs; o.NoCopyAddrs && len(addrs) > 1 {
			addrs = addrs[:1]
		}
		addrs = append(slices.Clone(addrs), t.kept...)
		p.Deprecated = append(p.Deprecated, t.deprecated...)
	}
	gateway, chosen := t.gateway, false
	for _, g := range o.Gateways {
		if g.Is6() == v6 {
			gateway, chosen = g, true
		}
	}
	if len(addrs) == 0 {
		if v6 && t.ifName != "" {
			return netip.Addr{} // the host has an IPv6 default route but no address: it reaches nothing by IPv6
		}
		if addrs = []netip.Prefix{noHostAddr4}; v6 {
			addrs = []netip.Prefix{noHostAddr6}
		}
	}
	for i := range addrs {
		if addrs[i].Addr() == gateway {
			gateway = netip.Addr{} // the guest's own address cannot be its gateway
		}
	}
	named := gateway.IsValid()
	if !named {
		if gateway = noHostGateway4; v6 {
			gateway = noHostGateway6
		}
	}
	p.Addrs = append(p.Addrs, addrs...)
	if !own && !chosen && !o.NoCopyRoutes && len(t.routes) > 0 {
		for _, r := range t.routes {
			p.Routes = append(p.Routes, withSource(r, t, addrs))
		}
	} else {
		def := rootlessnet.Route{Dst: netip.PrefixFrom(unspecified(v6), 0)}
		if named {
			def.Gateway = gateway
		}
		p.Routes = append(p.Routes, def)
	}
	return gateway
}

// withSource is a route of the host for a namespace with these addresses. A source that was not copied is left out, as the original
// does: the kernel would refuse the route. Beside addresses that are kept from before, a route of IPv4 gets the source that the
// host's kernel chooses, the address of the gateway's subnet or else the first; IPv6 leaves out deprecated addresses by itself.
func withSource(r rootlessnet.Route, t template, addrs []netip.Prefix) rootlessnet.Route {
	if !hasAddress(addrs, r.Source) {
		r.Source = netip.Addr{}
	}
	if r.Source.IsValid() || len(t.kept) == 0 || len(t.addrs) == 0 || r.Dst.Addr().Is6() {
		return r
	}
	r.Source = addrs[0].Addr()
	for _, p := range addrs[:len(addrs)-len(t.kept)] {
		if p.Contains(r.Gateway) {
			r.Source = p.Addr()
			break
		}
	}
	return r
}

// given returns the addresses of -a of one family. Without a prefix length they get that of --netmask or of the same address of
// the host, or else the default.
func given(o *pasta.Options, t template, v6 bool) (list []netip.Prefix) {
	for _, a := range o.Addrs {
		if a.Addr.Is6() != v6 {
			continue
		}
		bits := a.Bits
		switch {
		case bits != 0:
		case v6:
			bits = defaultBits6
		case o.Netmask != 0:
			bits = o.Netmask
		default:
			bits = pasta.DefaultBits(a.Addr)
			for _, have := range t.addrs {
				if have.Addr() == a.Addr {
					bits = have.Bits()
				}
			}
		}
		list = append(list, netip.PrefixFrom(a.Addr, bits))
	}
	return list
}

// addSpecial adds the special addresses: --map-host-loopback, --map-guest-addr and --dns-forward.
func addSpecial(o *pasta.Options, c *rootlessnet.Config, t4, t6 template) {
	p := c.Plan
	off := func(a netip.Addr) bool { return a.Is4() && !p.Gateway.IsValid() || a.Is6() && !p.Gateway6.IsValid() }
	special := map[netip.Addr]*rootlessnet.SpecialAddr{}
	at := func(a netip.Addr) *rootlessnet.SpecialAddr {
		if special[a] == nil {
			special[a] = &rootlessnet.SpecialAddr{Addr: a, To: rootlessnet.ToNetwork}
		}
		return special[a]
	}
	loopback := o.MapLoopback
	if loopback == nil && !o.NoMapLoopback {
		loopback = []netip.Addr{p.Gateway, p.Gateway6}
	}
	for _, a := range loopback {
		if a.IsValid() && !off(a) {
			at(a).To = rootlessnet.ToLoopback
			c.HostLoopback.All = true
		}
	}
	for _, a := range o.MapGuest {
		t := t4
		if a.Is6() {
			t = t6
		}
		if !off(a) && len(t.addrs) > 0 {
			s := at(a)
			s.To, s.Host = rootlessnet.ToHost, t.addrs[0].Addr()
		}
	}
	for _, a := range o.DNSForward {
		if !off(a) {
			s := at(a)
			if s.DNS = true; s.To == rootlessnet.ToNetwork {
				s.To = rootlessnet.ToRefuse
			}
		}
	}
	for _, s := range special {
		p.Special = append(p.Special, *s)
	}
	// A fixed order, so that equal options give equal plans; IPv4 comes before IPv6.
	slices.SortFunc(p.Special, func(a, b rootlessnet.SpecialAddr) int { return a.Addr.Compare(b.Addr) })
}
