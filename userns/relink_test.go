package userns

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/netns"
)

// TestRelink: the uplink has what it was given last. An address that stays keeps its route, though it was added after one of
// its subnet that goes; a default route is replaced, a route that cannot be had is no error.
func TestRelink(t *testing.T) {
	l := testLink(netns.KindAuto)
	l.GatewayMAC = []byte{2, 0, 0, 0, 0, 1}
	l.Addrs = append(l.Addrs, netip.MustParsePrefix("10.0.2.101/24"))
	s := start(t, Config{Link: l})
	l.Addrs = []netip.Prefix{netip.MustParsePrefix("10.0.2.101/24"), netip.MustParsePrefix("198.51.100.7/24"), netip.MustParsePrefix("2001:db8::7/64")}
	l.Gateways = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("fe80::9")}
	l.Routes = []netns.Route{
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("198.51.100.9")},
		{Dst: netip.MustParsePrefix("10.10.0.0/16"), Gateway: netip.MustParseAddr("198.51.100.9"), Source: netip.MustParseAddr("203.0.113.1")},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("198.51.100.1")},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::9"), Metric: 50},
	}
	if err := s.Relink(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if err := s.Relink(t.Context(), l); err != nil { // again: nothing to do
		t.Fatal(err)
	}
	out, code := run(t, s, "ip -o addr show dev eth0 && ip route && ip -6 route && ip neigh")
	if code == CodeNotFound {
		need(t, "a program that shows addresses: "+out)
	}
	for _, want := range []string{"inet 10.0.2.101/24", "inet 198.51.100.7/24", "inet6 2001:db8::7/64", "default via 198.51.100.1 dev eth0", "10.9.0.0/16 via 198.51.100.9",
		"10.0.2.0/24 dev eth0", "default via fe80::9 dev eth0 metric 50", "198.51.100.1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, gone := range []string{"10.0.2.100", "fd00::", "10.0.2.2 ", "10.10.0.0"} {
		if strings.Contains(out, gone) {
			t.Errorf("%q is there in\n%s", gone, out)
		}
	}
}

// TestListen: sockets of the namespace, for what it sends to itself; each that cannot be had has its errno.
func TestListen(t *testing.T) {
	s := start(t, Config{Network: NetworkNone})
	var ports []uint16
	for p := range uint16(2*listenMost + 5) {
		ports = append(ports, p+1)
	}
	ports = append(ports, 1)
	for _, proto := range []string{"tcp", "udp"} {
		files, errs, err := s.Listen(t.Context(), proto, ports)
		if err != nil || len(files) != len(ports) || len(errs) != len(ports) {
			t.Fatalf("%s: %d files, %d errors, %v", proto, len(files), len(errs), err)
		}
		for i, f := range files {
			if i == len(files)-1 {
				if f != nil || !errors.Is(errs[i], syscall.EADDRINUSE) {
					t.Errorf("%s port 1 twice: %v, %v", proto, f, errs[i])
				}
				continue
			}
			if f == nil || errs[i] != nil {
				t.Fatalf("%s port %d: %v", proto, ports[i], errs[i])
			}
			defer f.Close()
		}
		fd := int(files[0].Fd())
		device, _ := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
		listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if device != "lo" || listens != 0 != (proto == "tcp") {
			t.Errorf("%s: on %q, listening %d", proto, device, listens)
		}
	}
	if _, _, err := s.Listen(t.Context(), "sctp", ports); err == nil {
		t.Error("a protocol that is none")
	}
	// The conversation goes on.
	if out, code := run(t, s, "echo on"); out != "on" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
}

// TestSocketPool: a pool without a redirect, with TCP and UDP sockets.
func TestSocketPool(t *testing.T) {
	s := start(t, Config{Network: NetworkNone})
	p, err := s.SocketPool(t.Context(), netns.PoolOptions{IPv6: true, UDP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, ipv6 := range []bool{false, true} {
		unix.Close(take(t, transparent(p, ipv6)))
		fd := take(t, func() (int, error) { return p.GetUDP(ipv6) })
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			t.Errorf("kind %d, %v", kind, err)
		}
		unix.Close(fd)
	}
}
