package resolvconf

import (
	"bytes"
	"net/netip"
	"strings"
)

// Config is the content of a file.
type Config struct {
	Servers []netip.Addr // in the order of the file; IPv4-mapped addresses as IPv4, IPv6 addresses possibly with a zone
	Search  []string     // of the last search or domain line
	Options []string
}

// Parse parses a file: a keyword is recognised at the start of a line only, the last search or domain wins, and invalid lines are
// ignored.
func Parse(file []byte) Config {
	var c Config
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
			if a, err := netip.ParseAddr(words[1]); err == nil {
				c.Servers = append(c.Servers, a.Unmap())
			}
		case "domain":
			c.Search = words[1:2]
		case "search":
			c.Search = words[1:]
		case "options":
			c.Options = append(c.Options, words[1:]...)
		}
	}
	return c
}
