package stack

import (
	"net/netip"
	"testing"
)

// TestMembershipMessages: multicast membership messages are counted apart; what only looks like one is a drop as before.
func TestMembershipMessages(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	routers6, routers4 := netip.MustParseAddr("ff02::16"), netip.MustParseAddr("224.0.0.22")
	// Hop-by-hop options with a router alert (RFC 2711), and ICMPv6 after them.
	options := func(next, units byte, icmp ...byte) []byte {
		return append(append([]byte{next, units, 5, 2, 0, 0, 1, 0}, make([]byte, 8*int(units))...), icmp...)
	}
	for _, m := range []byte{130, 131, 132, 143} {
		b.dev.InjectBytes(ipFrame(guest6, routers6, 0, options(protoICMPv6, 0, m, 0, 0, 0)))
	}
	b.dev.InjectBytes(ipFrame(guest6, routers6, 0, options(protoICMPv6, 1, 143, 0, 0, 0)), ipFrame(guest4, routers4, protoIGMP, []byte{0x22, 0, 0, 0, 0, 0, 0, 0}))
	b.quiet("a membership message")
	if n := b.s.Stats().GroupReports; n != 6 {
		t.Errorf("%d membership messages, want 6", n)
	}
	if st := b.s.Stats(); len(st.Drops) > 0 {
		t.Errorf("drops: %v", st.Drops)
	}
	b.dev.InjectBytes(
		ipFrame(guest6, gw6, 0, options(protoICMPv6, 0, 143, 0, 0, 0)),      // not multicast
		ipFrame(guest6, routers6, 0, options(protoUDP, 0, 143, 0, 0, 0)),    // not ICMPv6
		ipFrame(guest6, routers6, 0, options(protoICMPv6, 0, 128, 0, 0, 0)), // an echo request
		ipFrame(guest6, routers6, 0, options(protoICMPv6, 0)),               // nothing after the options
		ipFrame(guest6, routers6, 0, []byte{protoICMPv6, 255, 0, 0, 0, 0, 0, 0, 143}),
		ipFrame(guest6, routers6, 0, []byte{protoICMPv6, 0}),
		ipFrame(guest6, routers6, 43, options(protoICMPv6, 0, 143, 0, 0, 0)))
	b.quiet("a packet with options")
	if n := b.drops(DropIPOptions); n != 7 || b.s.Stats().GroupReports != 6 {
		t.Errorf("%d dropped, want 7; %d membership messages", n, b.s.Stats().GroupReports)
	}
}
