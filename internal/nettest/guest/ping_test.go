package guest

import (
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// TestQuotesEcho: an ICMP error answers an echo request only if it quotes that request.
func TestQuotesEcho(t *testing.T) {
	const id, seq = 0x1234, 0x5678
	type sent struct {
		to       netip.Addr
		proto    byte
		kind     icmp.Type
		id, seq  int
		truncate int // bytes that the quote lacks
	}
	for _, family := range []struct {
		to, other     netip.Addr
		request, echo icmp.Type
		proto         byte
	}{
		{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, protoICMP},
		{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, protoICMPv6},
	} {
		ours := sent{family.to, family.proto, family.request, id, seq, 0}
		for name, c := range map[string]struct {
			change func(*sent)
			want   bool
		}{
			"the request":         {func(*sent) {}, true},
			"another destination": {func(s *sent) { s.to = family.other }, false},
			"a TCP segment":       {func(s *sent) { s.proto = protoTCP }, false},
			"an echo reply":       {func(s *sent) { s.kind = family.echo }, false},
			"another identifier":  {func(s *sent) { s.id++ }, false},
			"another sequence":    {func(s *sent) { s.seq++ }, false},
			"half of a request":   {func(s *sent) { s.truncate = 4 }, false},
			"nothing":             {func(s *sent) { s.truncate = 1000 }, false},
		} {
			s := ours
			c.change(&s)
			packet, err := (&icmp.Message{Type: s.kind, Body: &icmp.Echo{ID: s.id, Seq: s.seq}}).Marshal(nil)
			if err != nil {
				t.Fatal(err)
			}
			var header []byte
			if s.to.Is4() {
				header = make([]byte, ipv4.HeaderLen)
				header[0], header[9] = 0x45, s.proto
				copy(header[16:], s.to.AsSlice())
			} else {
				header = make([]byte, ipv6.HeaderLen)
				header[0], header[6] = 0x60, s.proto
				copy(header[24:], s.to.AsSlice())
			}
			message := append(append(make([]byte, 8), header...), packet...)
			message = message[:max(len(message)-s.truncate, 0)]
			if got := quotesEcho(message, family.to, family.request, id, seq); got != c.want {
				t.Errorf("to %v, the error quotes %s: %v, want %v", family.to, name, got, c.want)
			}
		}
	}
}
