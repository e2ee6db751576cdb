package procnet

import (
	"bufio"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// States of a socket (include/net/tcp_states.h).
const (
	tcpListenState = "0A"
	udpBoundState  = "07"
)

// Listeners are the addresses on which "tcp" sockets listen, or to which "udp" sockets are bound without a peer, in the
// namespace that dir (/proc/PID/net) shows. A file that cannot be read counts as empty: IPv6 may be off, or the process of the
// directory may have ended.
func Listeners(dir, proto string) (list []netip.AddrPort) {
	for _, name := range []string{proto, proto + "6"} {
		file, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		for sc := bufio.NewScanner(file); sc.Scan(); {
			if a, ok := parse(sc.Text(), proto); ok {
				list = append(list, a)
			}
		}
		_ = file.Close()
	}
	return list
}

// Unreachable reports whether a listener on a can be reached only inside its namespace, because a is in a prefix that is never
// routed. The listeners of the splice path have such addresses.
func Unreachable(a netip.Addr) bool { return unrouted4.Contains(a) || unrouted6.Contains(a) }

// Prefixes without hosts, from which the network setup takes the addresses of its listeners.
var (
	unrouted4 = netip.MustParsePrefix("192.0.0.0/24") // IETF protocol assignments, RFC 6890 section 2.2.2
	unrouted6 = netip.MustParsePrefix("100::/64")     // discard-only prefix, RFC 6666
)

// parse parses one line, "sl local_address rem_address st …". Addresses are in hexadecimal, each 32-bit word in host byte order
// (get_tcp4_sock in net/ipv4/tcp_ipv4.c). ok is false for lines that describe no listener.
func parse(line, proto string) (addr netip.AddrPort, ok bool) {
	words := strings.Fields(line)
	if len(words) < 4 {
		return addr, false
	}
	state := tcpListenState
	if proto == "udp" {
		state = udpBoundState
	}
	host, text, found := strings.Cut(words[1], ":")
	n, err := strconv.ParseUint(text, 16, 16)
	if !found || err != nil || n == 0 || words[3] != state {
		return addr, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil {
		return addr, false
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	a, valid := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), valid
}
