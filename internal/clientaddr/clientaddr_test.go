package clientaddr

import (
	"net/netip"
	"testing"
)

func TestSource(t *testing.T) {
	n := Network{
		Gateway4: netip.MustParseAddr("10.0.2.2"), Gateway6: netip.MustParseAddr("fd00::2"),
		Own:     []netip.Addr{netip.MustParseAddr("198.51.100.7")},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")},
	}
	const as4, as6 = "10.0.2.2:99", "[fd00::2]:99"
	for _, c := range []struct{ client, server, want string }{
		{"192.0.2.1:99", "10.0.2.100", "192.0.2.1:99"},
		{"[2001:db8::1]:99", "fd00::100", "[2001:db8::1]:99"},
		{"127.0.0.1:99", "10.0.2.100", as4},
		{"[::1]:99", "fd00::100", as6},
		{"0.0.0.0:99", "10.0.2.100", as4},
		{"169.254.1.1:99", "10.0.2.100", as4},
		{"[fe80::1]:99", "fd00::100", as6},
		{"10.0.2.100:99", "10.0.2.100", as4},
		{"10.0.2.2:99", "10.0.2.100", as4},
		{"10.0.2.9:99", "10.0.2.100", as4},
		{"198.51.100.7:99", "10.0.2.100", as4},
		{"192.0.2.1:99", "fd00::100", as6},
		{"[2001:db8::1]:99", "10.0.2.100", as4},
	} {
		if got := n.Source(netip.MustParseAddrPort(c.client), netip.MustParseAddr(c.server)); got.String() != c.want {
			t.Errorf("client %s of %s appears as %v, want %s", c.client, c.server, got, c.want)
		}
	}
	var none Network
	if got := none.Source(netip.MustParseAddrPort("127.0.0.1:9"), netip.MustParseAddr("10.0.2.100")); got.IsValid() {
		t.Errorf("without a gateway a client of the loopback appears as %v", got)
	}
}
