package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func testConfig() Config {
	return Config{
		Gateway4: netip.MustParseAddr("10.0.2.2"), Gateway6: netip.MustParseAddr("fd00::2"),
		Guest4: netip.MustParseAddr("10.0.2.100"), Guest6: netip.MustParseAddr("fd00::100"),
		Subnet4: netip.MustParsePrefix("10.0.2.0/24"), Subnet6: netip.MustParsePrefix("fd00::/64"),
		HostLoopback: HostLoopback{Ports: []uint16{8080, 5432}},
	}
}

func ap(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

func guestOf(a netip.Addr) netip.AddrPort {
	if a.Is4() {
		return ap("10.0.2.100", 40000)
	}
	return ap("fd00::100", 40000)
}

func TestDestinations(t *testing.T) {
	p := New(testConfig())
	for _, c := range []struct {
		dst    string
		action Action
		reason Reason
	}{
		// Public and private addresses, and unusual ones that are in use.
		{"93.184.216.34", Allow, None},
		{"192.168.1.10", Allow, None},
		{"172.17.0.1", Allow, None},
		{"10.0.3.2", Allow, None},
		{"100.64.0.1", Allow, None},
		{"192.0.2.1", Allow, None},
		{"198.18.0.1", Allow, None},
		{"203.0.113.9", Allow, None},
		{"2606:2800:220:1::1", Allow, None},
		{"2001:db8::1", Allow, None},
		{"fd01::1", Allow, None},
		{"fd00:0:0:1::2", Allow, None},
		{"100::1", Allow, None},

		// Loopback and "this host".
		{"127.0.0.1", Drop, Loopback},
		{"127.0.0.53", Drop, Loopback},
		{"127.255.255.255", Drop, Loopback},
		{"::1", Drop, Loopback},
		{"0.0.0.0", Drop, Unspecified},
		{"0.1.2.3", Drop, Unspecified},
		{"::", Drop, Unspecified},

		// IPv4-mapped addresses never appear in packets.
		{"::ffff:127.0.0.1", Drop, MappedLoopback},
		{"::ffff:0.0.0.0", Drop, MappedLoopback},
		{"::ffff:8.8.8.8", Drop, Mapped},
		{"::ffff:10.0.2.2", Drop, Mapped},

		// IPv4-compatible, IPv4-translated, and the rest of ::/8.
		{"::127.0.0.1", Drop, Loopback},
		{"::0.0.0.2", Drop, Loopback},
		{"::8.8.8.8", Drop, Reserved},
		{"::ffff:0:127.0.0.1", Drop, Loopback},
		{"::ffff:0:8.8.8.8", Drop, Reserved},
		{"1::1:1:1", Drop, Reserved},
		{"64:ff9b:0:1::1.1.1.1", Drop, Reserved},
		{"64:ff9b:2::1.1.1.1", Drop, Reserved},

		// NAT64, the well-known prefix.
		{"64:ff9b::8.8.8.8", Allow, None},
		{"64:ff9b::192.168.0.1", Allow, None},
		{"64:ff9b::127.0.0.1", Prohibit, NAT64Loopback},
		{"64:ff9b::127.9.9.9", Prohibit, NAT64Loopback},
		{"64:ff9b::", Prohibit, NAT64Loopback},
		{"64:ff9b::0.5.0.1", Prohibit, NAT64Loopback},
		{"64:ff9b::169.254.169.254", Prohibit, Embedded},
		{"64:ff9b::169.254.1.1", Prohibit, Embedded},
		{"64:ff9b::224.0.0.1", Prohibit, Embedded},
		{"64:ff9b::255.255.255.255", Prohibit, Embedded},
		{"64:ff9b::240.0.0.1", Prohibit, Embedded},
		{"64:ff9b::10.0.2.2", Prohibit, Embedded},
		{"64:ff9b::10.0.2.77", Prohibit, Embedded},

		// NAT64, local use, in each layout of RFC 6052.
		{"64:ff9b:1::8.8.8.8", Allow, None},
		{"64:ff9b:1:fffe::8.8.8.8", Allow, None},
		{"64:ff9b:1:808:8:800::", Allow, None},    // /48 of 8.8.8.8
		{"64:ff9b:1:8:8:808::", Allow, None},      // /56 of 8.8.8.8
		{"64:ff9b:1:0:8:808:800:0", Allow, None},  // /64 of 8.8.8.8
		{"64:ff9b:1:0:8:808:fa00:0", Allow, None}, // /64 of 8.8.8.250, reads as 250.0.0.0 in /96
		{"64:ff9b:1::127.0.0.1", Prohibit, NAT64Loopback},
		{"64:ff9b:1:fffe::127.0.0.1", Prohibit, NAT64Loopback},
		{"64:ff9b:1::", Prohibit, NAT64Loopback},
		{"64:ff9b:1:7f00:0:100::", Prohibit, NAT64Loopback},   // /48 of 127.0.0.1
		{"64:ff9b:1:7f00:0:100:0:9", Prohibit, NAT64Loopback}, // the same with a suffix that is not zero
		{"64:ff9b:1:7f:0:1::", Prohibit, NAT64Loopback},       // /56
		{"64:ff9b:1:0:7f:0:100:0", Prohibit, NAT64Loopback},   // /64
		{"64:ff9b:1:a9fe:a9:fe00::", Prohibit, Embedded},      // /48 of 169.254.169.254
		{"64:ff9b:1::169.254.169.254", Prohibit, Embedded},
		{"64:ff9b:1::239.1.1.1", Prohibit, Embedded},

		// Tunnels.
		{"2002:808:808::1", Allow, None},
		{"2002:7f00:1::1", Prohibit, TunnelLoopback},
		{"2002::1", Prohibit, TunnelLoopback},
		{"2002:a9fe:a9fe::1", Prohibit, Embedded},
		{"2002:a00:202::1", Prohibit, Embedded},
		{"2002:e000:1::1", Prohibit, Embedded},
		{"2001:0:808:808:0:0:f7f7:f7f7", Allow, None},
		{"2001:0:7f00:1:0:0:f7f7:f7f7", Prohibit, TunnelLoopback},  // server 127.0.0.1
		{"2001:0:808:808:0:0:80ff:fffe", Prohibit, TunnelLoopback}, // client 127.0.0.1
		{"2001:0:808:808:0:0:ffff:ffff", Prohibit, TunnelLoopback}, // client 0.0.0.0
		{"2001:0:808:808:0:0:5601:5601", Prohibit, Embedded},       // client 169.254.169.254
		{"2001:db8::5efe:8.8.8.8", Allow, None},
		{"2001:db8::5efe:127.0.0.1", Prohibit, TunnelLoopback},
		{"2001:db8::200:5efe:127.0.0.1", Prohibit, TunnelLoopback},
		{"2001:db8::200:5efe:10.0.2.2", Prohibit, Embedded},
		{"2002:808:808::5efe:127.0.0.1", Prohibit, TunnelLoopback},
		{"2001:db8::100:5efe:127.0.0.1", Allow, None}, // another identifier

		// Multicast and broadcast.
		{"224.0.0.1", Drop, Multicast},
		{"ff0e::1", Drop, Multicast},
		{"255.255.255.255", Drop, Broadcast},
		{"10.0.2.255", Drop, Broadcast},

		// Reserved and link-local addresses.
		{"240.0.0.1", Prohibit, Reserved},
		{"255.255.255.254", Prohibit, Reserved},
		{"fec0::1", Prohibit, Reserved},
		{"169.254.1.1", Prohibit, LinkLocal},
		{"fe80::1", Prohibit, LinkLocal},
		{"febf::1", Prohibit, LinkLocal},

		{"169.254.169.254", Prohibit, Metadata},
		{"169.254.170.2", Prohibit, Metadata},
		{"fd00:ec2::254", Prohibit, Metadata},
		{"fd20:ce::254", Prohibit, Metadata},

		// The guest's own subnet.
		{"10.0.2.0", Unreachable, OwnSubnet},
		{"10.0.2.3", Unreachable, OwnSubnet},
		{"10.0.2.100", Unreachable, OwnSubnet},
		{"fd00::3", Unreachable, OwnSubnet},
		{"fd00::100", Unreachable, OwnSubnet},
		{"10.0.2.2", Refuse, HostLoopbackClosed},
		{"fd00::2", Refuse, HostLoopbackClosed},
	} {
		dst := ap(c.dst, 443)
		for _, proto := range []Proto{TCP, UDP} {
			v := p.Judge(proto, guestOf(dst.Addr()), dst)
			if v.Action != c.action || v.Reason != c.reason {
				t.Errorf("%v to %s: %v (%v), want %v (%v)", proto, c.dst, v.Action, v.Reason, c.action, c.reason)
			}
			want := netip.AddrPort{}
			if c.action == Allow {
				want = dst
			}
			if v.Dst != want || v.Alt.IsValid() || v.Gateway {
				t.Errorf("%v to %s: Dst %v Alt %v Gateway %v, want Dst %v only", proto, c.dst, v.Dst, v.Alt, v.Gateway, want)
			}
		}
	}
}

func TestGateway(t *testing.T) {
	lo4, lo6 := "127.0.0.1", "::1"
	for _, c := range []struct {
		name   string
		open   HostLoopback
		proto  Proto
		dst    netip.AddrPort
		action Action
		reason Reason
		to     string
		alt    string
	}{
		{"closed by default", HostLoopback{}, TCP, ap("10.0.2.2", 80), Refuse, HostLoopbackClosed, "", ""},
		{"closed by default, UDP", HostLoopback{}, UDP, ap("fd00::2", 80), Refuse, HostLoopbackClosed, "", ""},
		{"named", HostLoopback{Ports: []uint16{8080, 80}}, TCP, ap("10.0.2.2", 80), Allow, None, lo4, lo6},
		{"named, UDP", HostLoopback{Ports: []uint16{8080, 80}}, UDP, ap("10.0.2.2", 8080), Allow, None, lo4, lo6},
		{"named, IPv6", HostLoopback{Ports: []uint16{80}}, TCP, ap("fd00::2", 80), Allow, None, lo6, lo4},
		{"another port", HostLoopback{Ports: []uint16{8080, 80}}, TCP, ap("10.0.2.2", 81), Refuse, HostLoopbackClosed, "", ""},
		{"all", HostLoopback{All: true}, TCP, ap("10.0.2.2", 65535), Allow, None, lo4, lo6},
		{"all but zero", HostLoopback{All: true}, TCP, ap("10.0.2.2", 0), Refuse, PortZero, "", ""},
		{"echo", HostLoopback{All: true}, ICMP, ap("10.0.2.2", 0), Refuse, GatewayClosed, "", ""},
		{"echo, IPv6", HostLoopback{All: true}, ICMPv6, ap("fd00::2", 0), Refuse, GatewayClosed, "", ""},
		{"SCTP", HostLoopback{All: true}, 132, ap("10.0.2.2", 80), Prohibit, Protocol, "", ""},
	} {
		cfg := testConfig()
		cfg.HostLoopback = c.open
		v := New(cfg).Judge(c.proto, guestOf(c.dst.Addr()), c.dst)
		want := Verdict{Action: c.action, Reason: c.reason}
		if c.action == Allow {
			want.Gateway, want.Dst, want.Alt = true, ap(c.to, c.dst.Port()), ap(c.alt, c.dst.Port())
		}
		if v != want {
			t.Errorf("%s: %+v, want %+v", c.name, v, want)
		}
	}
}

func TestSources(t *testing.T) {
	sources := []netip.Prefix{netip.MustParsePrefix("192.168.7.9/32"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, c := range []struct {
		src     string
		sources []netip.Prefix
		ok      bool
	}{
		{"10.0.2.100", nil, true},
		{"10.0.2.101", nil, true},
		{"fd00::abcd", nil, true},
		{"fe80::1", nil, true},
		{"10.0.2.2", nil, false},
		{"10.0.2.255", nil, false},
		{"fd00::2", nil, false},
		{"10.0.3.1", nil, false},
		{"192.168.1.1", nil, false},
		{"127.0.0.1", nil, false},
		{"0.0.0.0", nil, false},
		{"::", nil, false},
		{"::1", nil, false},
		{"ff02::1", nil, false},
		{"224.0.0.1", nil, false},
		{"::ffff:10.0.2.100", nil, false},
		{"2001:db8::1", nil, false},
		{"192.168.7.9", sources, true},
		{"10.99.0.1", sources, true},
		{"192.168.7.8", sources, false},
		{"10.0.2.2", sources, false},
		{"fd00::100", sources, false},
	} {
		cfg := testConfig()
		cfg.Sources = c.sources
		src := ap(c.src, 40000)
		dst := ap("8.8.8.8", 53)
		if src.Addr().Is6() {
			dst = ap("2001:4860:4860::8888", 53)
		}
		v := New(cfg).Judge(UDP, src, dst)
		if c.ok && v.Action != Allow || !c.ok && v != (Verdict{Action: Drop, Reason: SpoofedSource}) {
			t.Errorf("from %s (sources %v): %v (%v), want ok=%v", c.src, c.sources, v.Action, v.Reason, c.ok)
		}
	}
}

func TestConfigs(t *testing.T) {
	base := testConfig()
	with := func(f func(*Config)) Config { c := base; f(&c); return c }
	for _, c := range []struct {
		name     string
		cfg      Config
		proto    Proto
		src, dst netip.AddrPort
		want     Verdict
	}{
		{"nothing configured, nothing allowed", Config{}, TCP, ap("10.0.2.100", 1), ap("8.8.8.8", 53), no(Drop, SpoofedSource)},
		{"metadata allowed", with(func(c *Config) { c.AllowMetadata = true }), TCP, ap("10.0.2.100", 1), ap("169.254.169.254", 80),
			Verdict{Action: Allow, Dst: ap("169.254.169.254", 80)}},
		{"and not its neighbour", with(func(c *Config) { c.AllowMetadata = true }), TCP, ap("10.0.2.100", 1), ap("169.254.169.253", 80),
			no(Prohibit, LinkLocal)},
		{"nor another spelling", with(func(c *Config) { c.AllowMetadata = true }), TCP, ap("fd00::100", 1), ap("64:ff9b::169.254.169.254", 80),
			no(Prohibit, Embedded)},
		{"IPv6 off", with(func(c *Config) { c.IPv6Off = true }), TCP, ap("fd00::100", 1), ap("2001:db8::1", 80), no(Unreachable, FamilyOff)},
		{"IPv4 off", with(func(c *Config) { c.IPv4Off = true }), TCP, ap("10.0.2.100", 1), ap("8.8.8.8", 80), no(Unreachable, FamilyOff)},
		{"IPv6 off, IPv4 on", with(func(c *Config) { c.IPv6Off = true }), TCP, ap("10.0.2.100", 1), ap("8.8.8.8", 80),
			Verdict{Action: Allow, Dst: ap("8.8.8.8", 80)}},
		{"the host's own subnet: neighbours are real", Config{Guest4: netip.MustParseAddr("192.168.1.5"), Gateway4: netip.MustParseAddr("192.168.1.1")},
			TCP, ap("192.168.1.5", 1), ap("192.168.1.7", 80), Verdict{Action: Allow, Dst: ap("192.168.1.7", 80)}},
		{"the host's own subnet: one source", Config{Guest4: netip.MustParseAddr("192.168.1.5")},
			TCP, ap("192.168.1.6", 1), ap("192.168.1.7", 80), no(Drop, SpoofedSource)},
		{"gateway given as mapped", with(func(c *Config) { c.Gateway4 = netip.MustParseAddr("::ffff:10.0.2.2") }), TCP,
			ap("10.0.2.100", 1), ap("10.0.2.2", 1), no(Refuse, HostLoopbackClosed)},
		{"subnet given unmasked", with(func(c *Config) { c.Subnet4 = netip.MustParsePrefix("10.0.2.7/24") }), TCP,
			ap("10.0.2.100", 1), ap("10.0.2.255", 1), no(Drop, Broadcast)},
		{"a /31 has no broadcast", with(func(c *Config) { c.Subnet4 = netip.MustParsePrefix("10.0.2.100/31") }), TCP,
			ap("10.0.2.100", 1), ap("10.0.2.101", 1), no(Unreachable, OwnSubnet)},
		{"families differ", base, TCP, ap("10.0.2.100", 1), ap("2001:db8::1", 1), no(Drop, Malformed)},
		{"no destination", base, TCP, ap("10.0.2.100", 1), netip.AddrPort{}, no(Drop, Malformed)},
		{"to port zero", base, UDP, ap("10.0.2.100", 1), ap("8.8.8.8", 0), no(Refuse, PortZero)},
		{"from port zero", base, UDP, ap("10.0.2.100", 0), ap("8.8.8.8", 1), no(Drop, PortZero)},
		{"multicast to port zero stays silent", base, UDP, ap("10.0.2.100", 1), ap("224.0.0.1", 0), no(Drop, Multicast)},
		{"echo", base, ICMP, ap("10.0.2.100", 0), ap("8.8.8.8", 0), Verdict{Action: Allow, Dst: ap("8.8.8.8", 0)}},
		{"echo, IPv6", base, ICMPv6, ap("fd00::100", 0), ap("2001:db8::1", 0), Verdict{Action: Allow, Dst: ap("2001:db8::1", 0)}},
		{"ICMP over IPv6", base, ICMP, ap("fd00::100", 0), ap("2001:db8::1", 0), no(Prohibit, Protocol)},
		{"ICMPv6 over IPv4", base, ICMPv6, ap("10.0.2.100", 0), ap("8.8.8.8", 0), no(Prohibit, Protocol)},
		{"SCTP", base, 132, ap("10.0.2.100", 1), ap("8.8.8.8", 1), no(Prohibit, Protocol)},
		{"a zone means nothing", base, TCP, ap("fd00::100", 1), ap("fe80::1%lo", 1), no(Prohibit, LinkLocal)},
		{"a zone hides no loopback", base, TCP, ap("fd00::100", 1), ap("::1%lo", 1), no(Drop, Loopback)},
	} {
		if v := New(c.cfg).Judge(c.proto, c.src, c.dst); v != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, v, c.want)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	p := New(testConfig())
	for _, d := range []string{"8.8.8.8", "10.0.2.2", "2001:db8::1", "64:ff9b::127.0.0.1", "64:ff9b:1::8.8.8.8", "2002:808:808::1", "fe80::1"} {
		dst := ap(d, 8080)
		src := guestOf(dst.Addr())
		if n := testing.AllocsPerRun(100, func() { p.Judge(TCP, src, dst) }); n != 0 {
			t.Errorf("to %s: %v allocations a verdict, want 0", d, n)
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for r := Reason(0); int(r) < NumReasons; r++ {
		if s := r.String(); s == "" || seen[s] || strings.HasPrefix(s, "reason-") {
			t.Errorf("reason %d has the name %q, which is empty or not unique", r, s)
		} else {
			seen[s] = true
		}
	}
	for _, c := range []struct{ got, want string }{
		{Reason(NumReasons).String(), "reason-23"}, {TCP.String(), "tcp"}, {Proto(132).String(), "proto-132"},
		{Action(0).String(), "drop"}, {Unreachable.String(), "unreachable"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestSpecialAddresses(t *testing.T) {
	c := testConfig()
	addr := netip.MustParseAddr
	c.Special = []Special{
		{Addr: addr("10.0.2.2"), To: ToNoRoute}, // replaces the target of the gateway's address
		{Addr: addr("10.0.2.3")},
		{Addr: addr("10.0.2.4"), To: ToDrop},
		{Addr: addr("10.0.2.5"), To: ToLoopback},
		{Addr: addr("169.254.1.2"), To: ToHost, Host: addr("127.0.0.1")},
		{Addr: addr("169.254.1.3"), To: ToHost, Host: addr("2001:db8::7")},
		{Addr: addr("192.0.2.1"), To: ToNetwork},
		{Addr: addr("127.0.0.9"), To: ToNetwork},
		{Addr: addr("fd00::2"), To: ToNetwork},
	}
	c.Off = []Proto{UDP}
	p := New(c)
	for _, want := range []struct {
		proto  Proto
		dst    netip.AddrPort
		action Action
		reason Reason
		dial   string
	}{
		{TCP, ap("10.0.2.2", 8080), NoRoute, SpecialClosed, ""},
		{TCP, ap("10.0.2.3", 80), Refuse, SpecialClosed, ""},
		{TCP, ap("10.0.2.4", 80), Drop, SpecialClosed, ""},
		{TCP, ap("10.0.2.5", 8080), Allow, None, "127.0.0.1:8080"},
		{TCP, ap("10.0.2.5", 81), Refuse, HostLoopbackClosed, ""},
		{TCP, ap("169.254.1.2", 81), Allow, None, "127.0.0.1:81"},
		{ICMP, ap("169.254.1.2", 0), Allow, None, "127.0.0.1:0"},
		{TCP, ap("169.254.1.3", 81), Allow, None, "[2001:db8::7]:81"},
		{ICMP, ap("169.254.1.3", 0), Refuse, SpecialClosed, ""}, // an echo request cannot be translated to another address family
		{TCP, ap("169.254.1.4", 81), Prohibit, LinkLocal, ""},
		{TCP, ap("192.0.2.1", 81), Allow, None, "192.0.2.1:81"},
		{TCP, ap("127.0.0.9", 81), Drop, Loopback, ""}, // ToNetwork does not open an address of a closed kind
		{TCP, ap("fd00::2", 8080), Unreachable, OwnSubnet, ""},
		{UDP, ap("192.0.2.1", 81), Drop, ProtocolOff, ""},
		{UDP, ap("10.0.2.5", 8080), Drop, ProtocolOff, ""},
	} {
		v := p.Judge(want.proto, guestOf(want.dst.Addr()), want.dst)
		dial := ""
		if v.Dst.IsValid() {
			dial = v.Dst.String()
		}
		if v.Action != want.action || v.Reason != want.reason || dial != want.dial {
			t.Errorf("%v to %v: %v (%v) %s, want %v (%v) %s", want.proto, want.dst, v.Action, v.Reason, dial, want.action, want.reason, want.dial)
		}
	}
}

// Groups of applications are open to UDP, those of hosts and routers are not, and nothing else is sent to any group.
func TestGroups(t *testing.T) {
	p := New(Config{Sources: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fe80::/10")}})
	judge := func(proto Proto, group string, port uint16) Verdict {
		a := netip.MustParseAddr(group)
		src := ap("10.0.2.100", 5)
		if a.Is6() {
			src = ap("fe80::5", 5)
		}
		return p.Judge(proto, src, netip.AddrPortFrom(a, port))
	}
	for _, group := range []string{
		"224.0.0.251", "224.0.0.252", "224.0.1.187", "224.0.2.60", "232.1.1.1", "239.255.255.250",
		"ff02::c", "ff02::f", "ff02::fb", "ff02::1:3", "ff05::c", "ff08::fb", "ff0e::1234:5678", "ff12::8384", "ff15::1", "ff35:40:2001:db8::1",
	} {
		a := netip.MustParseAddr(group)
		if got, want := judge(UDP, group, 9), (Verdict{Action: Allow, Dst: netip.AddrPortFrom(a, 9)}); got != want {
			t.Errorf("%s: %+v, want %+v", group, got, want)
		}
		if got := judge(UDP, group, 0); got != no(Drop, PortZero) {
			t.Errorf("%s, port 0: %+v", group, got)
		}
		for _, proto := range []Proto{TCP, ICMP, ICMPv6, 2} {
			if got := judge(proto, group, 9); got != no(Drop, Multicast) {
				t.Errorf("%s, protocol %d: %+v", group, proto, got)
			}
		}
	}
	for _, group := range []string{
		"224.0.0.0", "224.0.0.1", "224.0.0.2", "224.0.0.5", "224.0.0.9", "224.0.0.22", "224.0.0.253",
		"ff00::fb", "ff01::1", "ff01::fb", "ff11::1", "ff0f::fb", "ff02::1", "ff02::2", "ff02::5", "ff02::9", "ff02::16", "ff02::1a", "ff05::2",
		"ff02::1:2", "ff05::1:3", "ff02::1:ff00:1", "ff02::2:ff12:3456", "ff0e::1",
	} {
		if got := judge(UDP, group, 9); got != no(Drop, Multicast) {
			t.Errorf("%s: %+v, want it dropped", group, got)
		}
	}
}
