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

// Listeners returns the local addresses of listening TCP sockets (proto "tcp"), or of bound UDP sockets without a peer (proto
// "udp"), in the network namespace of dir, which is a /proc/PID/net. If the namespace or the files no longer exist, there are
// none.
func Listeners(dir, proto string) (list []netip.AddrPort) {
	for _, name := range []string{proto, proto + "6"} {
		file, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue // IPv6 is off, or the process has ended
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

// Internal reports whether a listener on a serves the namespace's own network setup, such as the listeners of the TPROXY
// redirect, and is not a server that clients could reach.
func Internal(a netip.Addr) bool { return internal4.Contains(a) || internal6.Contains(a) }

// Prefixes without hosts, from which the network setup takes the addresses of its listeners.
var (
	internal4 = netip.MustParsePrefix("192.0.0.0/24") // IETF protocol assignments (RFC 6890, 2.2.2)
	internal6 = netip.MustParsePrefix("100::/64")     // discard-only (RFC 6666)
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
