package dns

import (
	"bytes"
	"net/netip"
	"strings"
)

// Host is one line of a hosts file.
type Host struct {
	Addr netip.Addr
	Name string
}

// HostsFile returns the content of the guest's /etc/hosts in the format of Docker's: the localhost block, the extra lines in
// their order (--add-host, host.docker.internal and so on), then the guest's addresses with its hostname. A hostname with a dot
// is followed by its first label. If addrs has no IPv6 address, the localhost block has none either, so that no program tries
// ::1 while IPv6 is off. Lines with an invalid name or address are omitted.
func HostsFile(hostname string, addrs []netip.Addr, extra []Host) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n")
	for _, a := range addrs {
		if a.Unmap().Is6() {
			b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n" +
				"fe00::\tip6-localnet\n" +
				"ff00::\tip6-mcastprefix\n" +
				"ff02::1\tip6-allnodes\n" +
				"ff02::2\tip6-allrouters\n")
			break
		}
	}
	line := func(a netip.Addr, name string) {
		if a.IsValid() && validWord(name) {
			b.WriteString(a.Unmap().String() + "\t" + name)
			if first, _, dotted := strings.Cut(name, "."); dotted && name == hostname && first != "" {
				b.WriteString(" " + first)
			}
			b.WriteByte('\n')
		}
	}
	for _, h := range extra {
		line(h.Addr, h.Name)
	}
	for _, a := range addrs {
		line(a, hostname)
	}
	return b.Bytes()
}

// validWord reports whether s can be a word in a hosts file or a resolv.conf: printable ASCII without comment characters.
func validWord(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' || c == ';' })
}
