package dns

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
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

// parseResolvConf parses a file as glibc does: a keyword is recognised at the start of a line only, the last search or domain
// wins, and invalid lines are ignored. servers is empty if the file lists none.
func parseResolvConf(file []byte) *hostConfig {
	c := &hostConfig{}
	for line := range bytes.Lines(file) {
		text := string(line)
		if i := strings.IndexAny(text, "#;"); i >= 0 {
			text = text[:i]
		}
		if text == "" || text[0] == ' ' || text[0] == '\t' {
			continue
		}
		words := strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil && len(c.servers) < maxNameservers {
				c.servers = append(c.servers, netip.AddrPortFrom(a.Unmap(), dnsPort))
			}
		case "domain":
			c.search = words[1:2]
		case "search":
			c.search = words[1:]
		case "options":
			c.options = append(c.options, words[1:]...)
		}
	}
	return c
}

// Servers returns the addresses of the upstreams in their order.
func (r *Resolver) Servers() []netip.Addr {
	var list []netip.Addr
	for _, s := range r.current.Load().servers {
		list = append(list, s.Addr())
	}
	return list
}

// GuestConfig returns the content of the resolv.conf of a guest whose resolvers are the given addresses, in their order.
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
