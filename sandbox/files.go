package sandbox

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"rootlessnet/dns"
	"rootlessnet/plan"
)

// The name-service files of sandboxes without a gateway: those of none and host mode.

// isolatedHosts is the hosts file of none mode: the sandbox's own name, and the entries of --add-host with an address. Without
// a gateway no address is translated to the host's.
func isolatedHosts(p *plan.Plan, hostname string) []byte {
	var list []dns.Host
	for _, h := range p.Hosts {
		if h.Addr.IsValid() {
			list = append(list, dns.Host{Addr: h.Addr, Name: h.Name})
		}
	}
	return dns.HostsFile(hostname, nil, list)
}

// changedHosts is the hosts file of host mode: the host's own and the entries of --add-host; nil, which leaves the file as it
// is, if there are none.
func changedHosts(p *plan.Plan) []byte {
	if len(p.Hosts) == 0 {
		return nil
	}
	text, _ := os.ReadFile("/etc/hosts")
	b := strings.Builder{}
	b.Write(text)
	for _, h := range p.Hosts {
		a := h.Addr
		if !a.IsValid() { // host-gateway: in host mode the host is reached by its loopback
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		fmt.Fprintf(&b, "%s\t%s\n", a, h.Name)
	}
	return []byte(b.String())
}

// changedResolvConf is the resolv.conf of host and none mode where --dns, --dns-search or --dns-option change the host's; nil,
// which leaves the file as it is, if they do not.
func changedResolvConf(p *plan.Plan) []byte {
	if len(p.DNS) == 0 && len(p.DNSSearch) == 0 && len(p.DNSOptions) == 0 {
		return nil
	}
	r, err := dns.New(dns.Config{Search: p.DNSSearch, Options: p.DNSOptions})
	if err != nil {
		return nil
	}
	defer r.Close()
	servers := p.DNS
	if len(servers) == 0 {
		servers = r.Servers()
	}
	return r.GuestConfig(servers...)
}
