package main

import (
	"net/netip"
	"os"

	"rootlessnet"
	"rootlessnet/internal/pasta"
	"rootlessnet/internal/resolvconf"
)

// hostResolvConf is the file with the host's resolvers and search domains.
const hostResolvConf = "/etc/resolv.conf"

// announce fills in the resolvers and search domains that DHCP, DHCPv6 and router advertisements announce with --dhcp-dns and
// --dhcp-search: those of the options, or else the host's. The address of --dns-forward is preferred to the host's resolvers,
// because queries to it reach them even after they have changed.
func announce(o *pasta.Options, a *rootlessnet.Announced) {
	servers, search := hostNames(hostResolvConf)
	if o.DHCPDNS && !o.DNSOff {
		switch {
		case len(o.DNS) > 0:
			a.DNS = o.DNS
		case len(o.DNSForward) > 0:
			a.DNS = o.DNSForward
		default:
			a.DNS = servers
		}
	}
	if o.DHCPSearch && !o.SearchOff {
		if a.Search = o.Search; len(a.Search) == 0 {
			a.Search = search
		}
	}
}

// hostNames reads a resolv.conf(5). It skips servers on the host's loopback or with a scope of the host, which the guest cannot
// reach.
func hostNames(path string) (servers []netip.Addr, search []string) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil
	}
	c := resolvconf.Parse(text)
	for _, a := range c.Servers {
		if !a.IsLoopback() && !a.IsUnspecified() && a.Zone() == "" {
			servers = append(servers, a)
		}
	}
	return servers, c.Search
}
