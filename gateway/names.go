package gateway

import (
	"net/netip"
	"strings"

	"rootlessnet/dns"
)

// hostNames are the names of the host inside the sandbox: Docker's and Podman's.
var hostNames = []string{"host.docker.internal", "host.containers.internal"}

// extraHosts are the names of the plan (--add-host), and those of hostNames that are not among them.
func (g *Gateway) extraHosts() (list []dns.Host) {
	p := g.Plan()
	hosts := p.HostAddrs()
	add := func(name string, addrs ...netip.Addr) {
		for _, a := range addrs {
			list = append(list, dns.Host{Addr: a, Name: name})
		}
	}
	given := map[string]bool{}
	for _, h := range p.Hosts {
		given[strings.ToLower(h.Name)] = true
		if h.Addr.IsValid() {
			add(h.Name, h.Addr)
		} else {
			add(h.Name, hosts...)
		}
	}
	for _, name := range hostNames {
		if !given[name] {
			add(name, hosts...)
		}
	}
	return list
}

// names are the names that the resolver answers without an upstream server.
func (g *Gateway) names() map[string][]netip.Addr {
	m := map[string][]netip.Addr{}
	for _, h := range g.extraHosts() {
		m[h.Name] = append(m[h.Name], h.Addr)
	}
	return m
}

// ResolvConf is the text of a resolv.conf for programs in the namespace: the sandbox's resolver, and the host's search list
// and options or those of the plan.
func (g *Gateway) ResolvConf() []byte {
	servers := g.Plan().DNSAddresses()
	if len(servers) > 1 && servers[0].Is4() {
		servers = servers[:1] // the others are the same resolver
	}
	return g.resolver.GuestConfig(servers...)
}

// HostsFile is the text of a hosts file for programs in the namespace.
func (g *Gateway) HostsFile(hostname string) []byte {
	return dns.HostsFile(hostname, guestAddrs(g.Plan()), g.extraHosts())
}
