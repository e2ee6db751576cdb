package dns

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"rootlessnet/internal/resolvconf"
)

// hostConfig is the content of a resolv.conf; see resolv.conf(5).
type hostConfig struct {
	servers []netip.AddrPort // at most maxNameservers
	search  []string
	options []string
}

func (c *hostConfig) equal(o *hostConfig) bool {
	return slices.Equal(c.servers, o.servers) && slices.Equal(c.search, o.search) && slices.Equal(c.options, o.options)
}

const dnsPort = 53

// localServer is the server that glibc uses if none is listed (res_init.c).
var localServer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)

// parseResolvConf parses a file and keeps its first maxNameservers servers, as glibc does. servers is empty if the file lists none.
func parseResolvConf(file []byte) *hostConfig {
	c := resolvconf.Parse(file)
	h := &hostConfig{search: c.Search, options: c.Options}
	for _, a := range c.Servers[:min(len(c.Servers), maxNameservers)] {
		h.servers = append(h.servers, netip.AddrPortFrom(a, dnsPort))
	}
	return h
}

// Servers returns the addresses of the upstreams in their order.
func (r *Resolver) Servers() []netip.Addr {
	var list []netip.Addr
	for _, s := range r.current.Load().servers {
		list = append(list, s.Addr())
	}
	return list
}

// GuestConfig returns the content of the resolv.conf of a guest that uses the given addresses as its resolvers, in their order.
func (r *Resolver) GuestConfig(gateways ...netip.Addr) []byte {
	c := r.current.Load()
	var b bytes.Buffer
	for _, g := range gateways {
		if g.IsValid() {
			b.WriteString("nameserver " + g.Unmap().String() + "\n")
		}
	}
	list := func(keyword string, words []string) {
		// Docker and systemd-resolved write "search ." for no search domain.
		words = slices.DeleteFunc(slices.Clone(words), func(s string) bool { return s == "." || !validWord(s) })
		if len(words) > 0 {
			b.WriteString(keyword + " " + strings.Join(words, " ") + "\n")
		}
	}
	list("search", c.search)
	list("options", c.options)
	return b.Bytes()
}
