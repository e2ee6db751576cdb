package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"rootlessnet"
	"rootlessnet/internal/pasta"
)

func parse(t *testing.T, line string) *pasta.Options {
	t.Helper()
	o, err := pasta.Parse("pasta", strings.Fields(line), [2]uint16{32768, 60999})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

var (
	host4 = template{ifName: "h0", addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("192.0.2.11/24")},
		gateway: netip.MustParseAddr("192.0.2.1"), routes: []rootlessnet.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.1")}}}
	host6 = template{ifName: "h0", addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8::10/64")}, gateway: netip.MustParseAddr("fe80::99"),
		routes: []rootlessnet.Route{{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::99")}}}
)

// TestConfigIsStable: the same options and the same templates of the host give equal plans, so that hostWatch sees a difference only
// when the host has changed.
func TestConfigIsStable(t *testing.T) {
	o := parse(t, "--config-net --map-guest-addr 169.254.1.2 --map-guest-addr fd00::2 --dns-forward 169.254.1.1 --dns-forward fd00::1")
	first := config(o, host4, host6)
	for range 50 {
		if again := config(o, host4, host6); !reflect.DeepEqual(first.Plan, again.Plan) {
			t.Fatalf("%+v\n%+v", first.Plan, again.Plan)
		}
	}
	other := host4
	other.addrs = other.addrs[1:]
	moved := config(o, other, host6)
	for _, s := range moved.Plan.Special {
		if s.Addr == netip.MustParseAddr("169.254.1.2") && s.Host != netip.MustParseAddr("192.0.2.11") {
			t.Errorf("the mapped address is forwarded to %v", s.Host)
		}
	}
}

func TestAnnounced(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("169.254.1.1")
	for _, c := range []struct {
		line   string
		dns    []netip.Addr
		search []string
	}{
		{"-D 192.0.2.53 -S lan --dns-forward 169.254.1.1", nil, nil},
		{"-D 192.0.2.53 --dns-forward 169.254.1.1 --dhcp-dns", []netip.Addr{a}, nil},
		{"--dns-forward 169.254.1.1 --dhcp-dns", []netip.Addr{b}, nil},
		{"-D none --dns-forward 169.254.1.1 --dhcp-dns", nil, nil},
		{"-D 192.0.2.53 --dhcp-dns --no-dhcp-dns", nil, nil},
		{"-S lan --dhcp-search", nil, []string{"lan"}},
		{"-S none --dhcp-search", nil, nil},
	} {
		got := config(parse(t, c.line), host4, host6).Plan.Announced
		if !slices.Equal(got.DNS, c.dns) || !slices.Equal(got.Search, c.search) {
			t.Errorf("%s: %v, %v", c.line, got.DNS, got.Search)
		}
	}
}

func TestHostNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# text\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%h0\nnameserver 2001:db8::53\ndomain old\nsearch a.example b.example\noptions rotate\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	servers, search := hostNames(path)
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}; !slices.Equal(servers, want) {
		t.Errorf("servers %v", servers)
	}
	if !slices.Equal(search, []string{"a.example", "b.example"}) {
		t.Errorf("search %q", search)
	}
	if servers, search := hostNames(path + "x"); servers != nil || search != nil {
		t.Error("a file that is not there has servers")
	}
}

// TestFollowedPorts: which ports the follower opens for a server that listens on a given port, and which listeners count.
func TestFollowedPorts(t *testing.T) {
	o := parse(t, "-t 192.0.2.10/8080:80,auto -t [::1]/8080:80,auto -T 7000-7002:8000-8002,~7001,auto")
	f := &follower{o: o}
	wants := func(fromNS bool, to uint16) (list []string) {
		now := map[followed]bool{}
		for _, s := range specs(o) {
			for _, r := range s.Rules {
				if r.Auto && s.proto == "tcp" && s.fromNS == fromNS && to >= r.To && to <= r.Target(r.Last) {
					f.want(now, s, r, to)
				}
			}
		}
		for p := range now {
			list = append(list, netip.AddrPortFrom(p.addr, p.port).String())
		}
		slices.Sort(list)
		return list
	}
	for _, c := range []struct {
		fromNS bool
		to     uint16
		want   []string
	}{
		{false, 80, []string{"192.0.2.10:8080", "[::1]:8080"}}, {false, 81, nil},
		{true, 8000, []string{"invalid AddrPort"}}, {true, 8001, nil}, {true, 8002, []string{"invalid AddrPort"}},
	} {
		if got := wants(c.fromNS, c.to); !slices.Equal(got, c.want) {
			t.Errorf("a server on %d, from the namespace %v: %v, want %v", c.to, c.fromNS, got, c.want)
		}
	}
	for _, c := range []struct {
		addr   string
		fromNS bool
		want   bool
	}{{"0.0.0.0", true, true}, {"127.0.0.1", true, true}, {"192.0.2.10", true, false}, {"127.0.0.1", false, false}, {"10.0.0.5", false, true}, {"192.0.0.8", false, false}, {"100::1", false, false}} {
		if got := f.reached(netip.MustParseAddr(c.addr), c.fromNS); got != c.want {
			t.Errorf("%s, from the namespace %v: %v", c.addr, c.fromNS, got)
		}
	}
}

// fakeBox is an adder with ports that are in use and a limit of open files.
type fakeBox struct {
	taken map[uint16]bool // in use
	full  int             // how many ports may be open
	open  int
	calls int
}

func (b *fakeBox) AddMappings(list ...rootlessnet.PortMapping) ([]rootlessnet.Port, error) {
	b.calls++
	for _, m := range list {
		if b.taken[m.HostPort] {
			return nil, syscall.EADDRINUSE
		}
	}
	if b.open+len(list) > b.full {
		return nil, syscall.EMFILE
	}
	b.open += len(list)
	return nil, nil
}

// TestAddOptional: addOptional opens all ports that are free, in few calls, and stops at the limit of open files.
func TestAddOptional(t *testing.T) {
	var all []rootlessnet.PortMapping
	for port := 1; port <= 65535; port++ {
		all = append(all, rootlessnet.PortMapping{HostPort: uint16(port)})
	}
	b := &fakeBox{taken: map[uint16]bool{22: true, 8080: true, 65535: true}, full: 1 << 20}
	refused := 0
	count := func(rootlessnet.PortMapping, error) { refused++ }
	if n, err := addOptional(b, all, count); n != 65535-3 || refused != 3 || b.open != n || !errors.Is(err, syscall.EADDRINUSE) || b.calls > 200 {
		t.Errorf("%d of %d open in %d calls, %v", n, b.open, b.calls, err)
	}
	b = &fakeBox{full: 1000}
	if n, err := addOptional(b, all, count); n != 1000 || refused != 3+64535 || b.open != n || !errors.Is(err, syscall.EMFILE) || b.calls > 200 {
		t.Errorf("%d of %d open in %d calls, %v", n, b.open, b.calls, err)
	}
}

// TestLastAddressWins: of several -a of one family the last one counts, as with other repeated options.
func TestLastAddressWins(t *testing.T) {
	o := parse(t, "-a 10.9.9.9 -a fd99::1 -a 10.8.8.8 -a fd98::1")
	if len(o.Addrs) != 2 || o.Addrs[0].Addr.String() != "10.8.8.8" || o.Addrs[1].Addr.String() != "fd98::1" {
		t.Errorf("%v", o.Addrs)
	}
}

// TestUserNamespaceAndPID: --userns names the user namespace, and the PID names the network namespace only.
func TestUserNamespaceAndPID(t *testing.T) {
	o := parse(t, fmt.Sprintf("--userns /proc/self/ns/user %d", os.Getpid()))
	if want := fmt.Sprintf("/proc/%d/ns/net", os.Getpid()); o.NetNS != want || o.UserNS != "/proc/self/ns/user" || o.PID != 0 {
		t.Errorf("%q, %q, %d", o.NetNS, o.UserNS, o.PID)
	}
}

// TestGatewayReplacesRoutes: with -g the namespace gets one default route by that gateway in place of the host's routes.
func TestGatewayReplacesRoutes(t *testing.T) {
	host := template{ifName: "v0", addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}, gateway: netip.MustParseAddr("10.77.0.2"),
		routes: []rootlessnet.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.77.0.2")}}}
	p := new(rootlessnet.NetworkPlan)
	want := netip.MustParseAddr("10.77.0.3")
	if got := addFamily(parse(t, "--config-net -g 10.77.0.3"), p, host, false); got != want || len(p.Routes) != 1 || p.Routes[0].Gateway != want {
		t.Errorf("gateway %v, routes %v", got, p.Routes)
	}
}
