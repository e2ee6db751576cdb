package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// TestUsableAtOnce: the kernel delivers packets to an IPv6 address when the function that adds it returns.
func TestUsableAtOnce(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	setUp(t, l)
	want := *l
	want.Addrs = append(slices.Clone(l.Addrs), netip.MustParsePrefix("fd00::101/64"), netip.MustParsePrefix("fd00::102/128"))
	usable := func(addrs []netip.Prefix) {
		t.Helper()
		for _, p := range addrs {
			routes, err := netlink.RouteGet(p.Addr().AsSlice())
			if err != nil || len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL {
				t.Errorf("%v is not local: %v, %v", p, routes, err)
			}
		}
	}
	usable(l.Addrs)
	if err := Relink(l, &want, func(format string, args ...any) { t.Errorf(format, args...) }); err != nil {
		t.Fatal(err)
	}
	usable(want.Addrs)
}

// TestRelinkMetrics: a route of which the kernel chose the metric is replaced by one with that metric, and a route of metric 0 that
// has gone with its source does not take one of another metric along.
func TestRelinkMetrics(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	any4, any6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	gone := netip.MustParsePrefix("10.0.2.101/24")
	l.Addrs = append(l.Addrs, gone)
	l.Routes = []Route{{Dst: any6}, {Dst: any4, Gateway: netip.MustParseAddr("10.0.2.2"), Source: gone.Addr()}}
	setUp(t, l)
	want := *l
	want.Addrs = l.Addrs[:2]
	want.Routes = []Route{{Dst: any6, Gateway: netip.MustParseAddr("fd00::2"), Metric: metric6},
		{Dst: any4, Gateway: netip.MustParseAddr("10.0.2.2"), Metric: 100}}
	if err := Relink(l, &want, func(format string, args ...any) { t.Errorf(format, args...) }); err != nil {
		t.Fatal(err)
	}
	have := describeUplink(t, l.Name)
	for _, w := range []string{"::/0 via fd00::2", "0.0.0.0/0 via 10.0.2.2"} {
		if !slices.Contains(have, w) {
			t.Errorf("no %q in\n%q", w, have)
		}
	}
	if slices.Contains(have, "::/0 via <nil>") {
		t.Errorf("the old route is there in\n%q", have)
	}
}

// TestRelinkDeprecated: an address loses its preferred lifetime and gets it back, and is not removed meanwhile.
func TestRelinkDeprecated(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	l.Deprecated = []netip.Addr{l.Addrs[0].Addr()}
	setUp(t, l)
	deprecated := func() (list []netip.Addr) {
		link, err := netlink.LinkByName(l.Name)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range l.Addrs {
			i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == p.String() })
			if i < 0 {
				t.Errorf("%v is not there", p)
			} else if addrs[i].Flags&unix.IFA_F_DEPRECATED != 0 {
				list = append(list, p.Addr())
			}
		}
		return list
	}
	if got := deprecated(); !slices.Equal(got, l.Deprecated) {
		t.Errorf("at the beginning %v is deprecated", got)
	}
	for _, now := range [][]netip.Addr{{l.Addrs[0].Addr(), l.Addrs[1].Addr()}, {l.Addrs[1].Addr()}, nil} {
		want := *l
		want.Deprecated = now
		if err := Relink(l, &want, func(format string, args ...any) { t.Errorf(format, args...) }); err != nil {
			t.Fatal(err)
		}
		if got := deprecated(); !slices.Equal(got, now) {
			t.Errorf("%v is deprecated, want %v", got, now)
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
