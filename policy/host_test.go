package policy

import (
	"net/netip"
	"testing"
)

// TestGatewayToHost: a port of the gateway that is not one of the host's loopback leads to the host's address on its network, of either
// family; the ports of the loopback are as without one. An address of the host that is of a closed kind counts as none.
func TestGatewayToHost(t *testing.T) {
	const host4, host6 = "192.0.2.10", "2001:db8::10"
	for _, c := range []struct {
		name         string
		host4, host6 string
		open         HostLoopback
		proto        Proto
		dst          netip.AddrPort
		to, alt      string // "": refused
	}{
		{"IPv4", host4, host6, HostLoopback{}, TCP, ap("10.0.2.2", 80), host4, host6},
		{"IPv6", host4, host6, HostLoopback{}, UDP, ap("fd00::2", 80), host6, host4},
		{"IPv4 only", host4, "", HostLoopback{}, TCP, ap("10.0.2.2", 80), host4, ""},
		{"IPv6 to IPv4", host4, "", HostLoopback{}, TCP, ap("fd00::2", 80), host4, ""},
		{"IPv4 to IPv6", "", host6, HostLoopback{}, UDP, ap("10.0.2.2", 80), host6, ""},
		{"none", "", "", HostLoopback{}, TCP, ap("10.0.2.2", 80), "", ""},
		{"a port of the loopback", host4, host6, HostLoopback{Ports: []uint16{80}}, TCP, ap("10.0.2.2", 80), "127.0.0.1", "::1"},
		{"another", host4, host6, HostLoopback{Ports: []uint16{80}}, TCP, ap("10.0.2.2", 81), host4, host6},
		{"all of the loopback", host4, host6, HostLoopback{All: true}, TCP, ap("fd00::2", 81), "::1", "127.0.0.1"},
		{"port 0", host4, host6, HostLoopback{}, TCP, ap("10.0.2.2", 0), "", ""},
		{"ping", host4, host6, HostLoopback{}, ICMP, ap("10.0.2.2", 0), "", ""},
		{"loopback", "127.0.0.1", "::1", HostLoopback{}, TCP, ap("10.0.2.2", 80), "", ""},
		{"loopback, another spelling", "127.1.2.3", "::ffff:127.0.0.1", HostLoopback{}, TCP, ap("fd00::2", 80), "", ""},
		{"unspecified", "0.0.0.0", "::", HostLoopback{}, TCP, ap("10.0.2.2", 80), "", ""},
		{"NAT64 of the loopback", "", "64:ff9b::7f00:1", HostLoopback{}, TCP, ap("fd00::2", 80), "", ""},
		{"link-local, multicast", "169.254.1.1", "ff02::1", HostLoopback{}, UDP, ap("10.0.2.2", 80), "", ""},
		{"metadata", "169.254.169.254", "fd00:ec2::254", HostLoopback{}, TCP, ap("10.0.2.2", 80), "", ""},
		{"families exchanged", host6, host4, HostLoopback{}, TCP, ap("10.0.2.2", 80), "", ""},
	} {
		cfg := testConfig()
		cfg.HostLoopback = c.open
		parse := func(s string) (a netip.Addr) {
			if s != "" {
				a = netip.MustParseAddr(s)
			}
			return a
		}
		cfg.Host4, cfg.Host6 = parse(c.host4), parse(c.host6)
		v := New(cfg).Judge(c.proto, guestOf(c.dst.Addr()), c.dst)
		if c.to == "" {
			if v.Action != Refuse {
				t.Errorf("%s: %+v, want a refusal", c.name, v)
			}
			continue
		}
		want := Verdict{Action: Allow, Gateway: true, Dst: ap(c.to, c.dst.Port())}
		if c.alt != "" {
			want.Alt = ap(c.alt, c.dst.Port())
		}
		if v != want {
			t.Errorf("%s: %+v, want %+v", c.name, v, want)
		}
	}
	// A special address that stands for the host as the gateway does.
	cfg := testConfig()
	cfg.Host4 = netip.MustParseAddr(host4)
	cfg.Special = []Special{{Addr: netip.MustParseAddr("198.18.0.1"), To: ToLoopback}}
	if v := New(cfg).Judge(TCP, guestOf(cfg.Host4), ap("198.18.0.1", 80)); v.Dst != ap(host4, 80) {
		t.Errorf("a special address: %+v", v)
	}
}
