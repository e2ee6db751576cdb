package main

import (
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"rootlessnet"
)

// TestKeptAddresses: an address of the namespace that another interface of the host has stays, deprecated; routes get the source
// that the host chooses. When the template has it again, or the host does not, it is not kept.
func TestKeptAddresses(t *testing.T) {
	vpn := template{ifName: "vpn0", addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/32")},
		routes: []rootlessnet.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}, {Dst: netip.MustParsePrefix("10.9.0.0/16"), Source: netip.MustParseAddr("203.0.113.5")}}}
	o := parse(t, "--config-net --no-copy-addrs")
	before := config(o, host4, host6).Plan
	has := map[netip.Addr]bool{netip.MustParseAddr("192.0.2.10"): true, netip.MustParseAddr("10.8.0.2"): true}
	vpn.keep(before.Addrs, false, has)
	now := config(o, vpn, host6).Plan
	want := []netip.Prefix{vpn.addrs[0], host4.addrs[0], host6.addrs[0]}
	if !slices.Equal(now.Addrs, want) || !slices.Equal(now.Deprecated, []netip.Addr{host4.addrs[0].Addr()}) {
		t.Errorf("addresses %v, deprecated %v", now.Addrs, now.Deprecated)
	}
	for _, r := range now.Routes[:2] {
		if r.Source != vpn.addrs[0].Addr() {
			t.Errorf("the route to %v has the source %v", r.Dst, r.Source)
		}
	}
	vpn.keep(now.Addrs, false, map[netip.Addr]bool{netip.MustParseAddr("10.8.0.2"): true})
	if again := config(o, vpn, host6).Plan; len(again.Addrs) != 2 || len(again.Deprecated) != 0 || again.Routes[0].Source.IsValid() {
		t.Errorf("without the address on the host: %v, deprecated %v, routes %v", again.Addrs, again.Deprecated, again.Routes)
	}
	back := host4
	back.keep(now.Addrs, false, has)
	if p := config(parse(t, "--config-net"), back, host6).Plan; !slices.Contains(p.Addrs, host4.addrs[0]) || slices.Contains(p.Deprecated, host4.addrs[0].Addr()) {
		t.Errorf("back again: %v, deprecated %v", p.Addrs, p.Deprecated)
	}
}

// TestSourceOfRoutes: a source that is not copied is left out, any other one stays.
func TestSourceOfRoutes(t *testing.T) {
	host := host4
	host.routes = []rootlessnet.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.1"), Source: netip.MustParseAddr("203.0.113.5")},
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("192.0.2.1"), Source: netip.MustParseAddr("192.0.2.11")},
	}
	routes := config(parse(t, "--config-net"), host, host6).Plan.Routes
	if routes[0].Source.IsValid() || routes[1].Source != netip.MustParseAddr("192.0.2.11") {
		t.Errorf("%v", routes)
	}
}

func TestDisposition(t *testing.T) {
	const status = "Name:\tsh\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000004000\n"
	for s, want := range map[syscall.Signal]disposition{syscall.SIGHUP: handles, syscall.SIGINT: ignores, syscall.SIGTERM: handles, syscall.SIGQUIT: discards} {
		if got := parseDisposition([]byte(status), s); got != want {
			t.Errorf("%v: %v, want %v", s, got, want)
		}
	}
}
