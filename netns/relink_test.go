package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestRelink: the uplink has the addresses, routes and neighbours that it was given last. An address that stays keeps its
// on-link route although it was added after a removed one of its subnet; a default route is replaced; a route that the kernel
// refuses is a warning.
func TestRelink(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	l.Addrs = append(l.Addrs, netip.MustParsePrefix("10.0.2.101/24"))
	setUp(t, l)
	want := *l
	want.Addrs = []netip.Prefix{netip.MustParsePrefix("10.0.2.101/24"), netip.MustParsePrefix("198.51.100.7/24"), netip.MustParsePrefix("2001:db8::7/64")}
	want.Gateways = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("fe80::9")}
	want.Routes = []Route{
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("198.51.100.9")},
		{Dst: netip.MustParsePrefix("10.10.0.0/16"), Gateway: netip.MustParseAddr("198.51.100.9"), Source: netip.MustParseAddr("203.0.113.1")},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("198.51.100.1")},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::9"), Metric: 50},
	}
	for i, warnings := range []int{1, 0} { // the second time there is nothing to do
		n := 0
		if err := Relink(l, &want, func(string, ...any) { n++ }); err != nil || n != warnings {
			t.Errorf("call %d: %d warnings, %v; want %d", i, n, err, warnings)
		}
	}
	have := describeUplink(t, l.Name)
	for _, w := range []string{"10.0.2.101/24", "198.51.100.7/24", "2001:db8::7/64", "0.0.0.0/0 via 198.51.100.1", "10.9.0.0/16 via 198.51.100.9",
		"10.0.2.0/24 via <nil>", "::/0 via fe80::9 metric 50", "198.51.100.1 at 02:00:00:00:00:01"} {
		if !slices.Contains(have, w) {
			t.Errorf("no %q in\n%q", w, have)
		}
	}
	for _, removed := range []string{"10.0.2.100/24", "fd00::100/64", "0.0.0.0/0 via 10.0.2.2", "10.10.0.0/16 via 198.51.100.9", "10.0.2.2 at 02:00:00:00:00:01"} {
		if slices.Contains(have, removed) {
			t.Errorf("%q is still in\n%q", removed, have)
		}
	}
}

// describeUplink lists addresses, routes and permanent neighbours of an interface.
func describeUplink(t *testing.T, name string) (list []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		list = append(list, a.IPNet.String())
	}
	for _, f := range families(true) {
		routes, err := netlink.RouteList(link, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			s := fmt.Sprintf("%v via %v", r.Dst, r.Gw)
			if f == netlink.FAMILY_V6 && r.Priority == 50 {
				s += " metric 50"
			}
			list = append(list, s)
		}
		neighbours, err := netlink.NeighList(link.Attrs().Index, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT {
				list = append(list, fmt.Sprintf("%v at %v", n.IP, n.HardwareAddr))
			}
		}
	}
	return list
}

func TestLinkRefused(t *testing.T) {
	for name, l := range map[string]Link{
		"mtu": {MTU: minMTU - 1}, "large mtu": {MTU: maxMTU + 1}, "kind": {Kind: "wire"}, "name": {Name: "a234567890123456"}, "mac": {MAC: []byte{1}},
		"address": {Addrs: []netip.Prefix{{}}}, "gateways": {Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.3")}},
	} {
		if _, err := l.WithDefaults(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
