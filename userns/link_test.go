package userns

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/skip"
	"rootlessnet/netns"
)

// TestRelink: the uplink has the addresses and routes that it was given last. An address that stays keeps its route, though it
// was added after a removed one of its subnet; a default route is replaced; a route that the kernel refuses is no error.
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
	if err := s.Relink(t.Context(), l); err != nil { // the second time there is nothing to do
		t.Fatal(err)
	}
	out, code := run(t, s, "ip -o addr show dev eth0 && ip route && ip -6 route && ip neigh")
	if code == CodeNotFound {
		skip.Missing(t, "a program that shows addresses: %v", out)
	}
	for _, want := range []string{"inet 10.0.2.101/24", "inet 198.51.100.7/24", "inet6 2001:db8::7/64", "default via 198.51.100.1 dev eth0", "10.9.0.0/16 via 198.51.100.9",
		"10.0.2.0/24 dev eth0", "default via fe80::9 dev eth0 metric 50", "198.51.100.1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, removed := range []string{"10.0.2.100", "fd00::", "10.0.2.2 ", "10.10.0.0"} {
		if strings.Contains(out, removed) {
			t.Errorf("%q is still in\n%s", removed, out)
		}
	}
}

// testLink has everything that can be set.
func testLink(kind string) netns.Link {
	return netns.Link{Kind: kind, MAC: []byte{2, 0, 0, 0, 0, 9}, MTU: 1500,
		Addrs:    []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")}}
}

// TestLinkKinds: with each kind of device, a frame that the guest sends is read from the descriptor, and one that is written to
// it reaches the guest.
func TestLinkKinds(t *testing.T) {
	for _, kind := range []string{netns.KindTAP, netns.KindTAPPlain, netns.KindPacket, netns.KindAuto} {
		t.Run(kind, func(t *testing.T) {
			s, err := Start(t.Context(), Config{Link: testLink(kind)})
			if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EPERM) {
				if !strings.Contains(err.Error(), "open link "+kind) || !strings.Contains(err.Error(), "doctor") {
					t.Errorf("unhelpful: %v", err)
				}
				skip.Missing(t, "%v: %v", kind, err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			f, got, res := s.LinkFD()
			if f == nil || (kind != netns.KindAuto && got != kind) {
				t.Fatalf("got %v, %q", f, got)
			}
			defer f.Close()
			if kind == netns.KindAuto && got != netns.KindTAP && len(res.Refused) == 0 {
				t.Errorf("%s chosen without a reason", got)
			}
			t.Logf("%s %+v", got, res)
			header := 10 // sizeof(struct virtio_net_hdr)
			if got == netns.KindTAPPlain {
				header = 0
			}
			if (got == netns.KindTAPPlain) == res.TSO || res.TSO != res.CSum {
				t.Errorf("offloads %+v", res)
			}
			out, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if _, err := s.Run(Command{Stdout: w, Stderr: w, Argv: []string{"sh", "-c",
				"cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /proc/net/route /proc/net/ipv6_route /proc/net/if_inet6; " +
					"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; " +
					"exec 2>/dev/null; echo x > /dev/udp/10.0.2.2/9 || bash -c 'echo x > /dev/udp/10.0.2.2/9'; sleep 1; grep 10.0.2.2 /proc/net/arp"}}); err != nil {
				t.Fatal(err)
			}
			w.Close()
			// The guest sends an ARP request for its gateway; one reply suffices.
			reply := func(frame []byte) []byte {
				a := make([]byte, header+42)
				b := a[header:]
				copy(b, frame[6:12])
				copy(b[6:], []byte{2, 0, 0, 0, 0, 1, 8, 6})
				copy(b[14:], frame[14:20])
				b[21] = 2
				copy(b[22:], []byte{2, 0, 0, 0, 0, 1})
				copy(b[28:], frame[38:42])
				copy(b[32:], frame[22:32])
				return a
			}
			f.SetReadDeadline(time.Now().Add(3 * time.Second))
			buf := make([]byte, 1<<16+100)
			udp := false
			for !udp {
				n, err := f.Read(buf)
				if err != nil {
					t.Fatalf("no datagram came: %v", err)
				}
				frame := buf[header:n]
				switch {
				case len(frame) >= 42 && frame[12] == 8 && frame[13] == 6:
					if _, err := f.Write(reply(frame)); err != nil {
						t.Fatal(err)
					}
				case len(frame) > 34 && frame[12] == 8 && frame[13] == 0 && frame[23] == 17:
					udp = true
				}
			}
			b, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"02:00:00:00:00:09\n1500\n", "eth0\t00000000\t0202000A\t0003",
				"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000002",
				"fd000000000000000000000000000100", "02:00:00:00:00:01", "\n0\n0\t0\n"} {
				if !strings.Contains(string(b), want) {
					t.Errorf("%q is missing in\n%s", want, b)
				}
			}
			if _, err := s.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
