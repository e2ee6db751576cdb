package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// neverDial are prefixes that FuzzJudge expects to be closed. They are taken from the registries, independently of the code.
var neverDial = func() (out []netip.Prefix) {
	for _, s := range strings.Fields(`127.0.0.0/8 0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 169.254.0.0/16 10.0.2.0/24
		::/16 ff00::/8 fe80::/10 fec0::/10 fd00::/64 fd00:ec2::254/128
		64:ff9b::7f00:0/104 64:ff9b::/104 64:ff9b::a9fe:0/112 64:ff9b::e000:0/100 64:ff9b::a00:200/120
		2002:7f00::/24 2002::/24 2002:a9fe::/32 2001:0:7f00::/40`) {
		p := netip.MustParsePrefix(s)
		out = append(out, p)
	}
	return out
}()

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

var nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")

// controlBlock has the groups that no router forwards (RFC 5771, 4).
var controlBlock = netip.MustParsePrefix("224.0.0.0/24")

// FuzzJudge: an allowed Dst is never of a closed kind, unless it is the loopback address on a listed port and the guest
// addressed the gateway, nor a group but for UDP. On other ports the gateway leads to the host's address. A verdict other than Allow has a reason and no destination.
func FuzzJudge(f *testing.F) {
	cfg := testConfig()
	cfg.Host4, cfg.Host6 = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	p := New(cfg)
	for _, s := range []string{"8.8.8.8", "10.0.2.2", "fd00::2", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::1.1.1.1", "2002:7f00:1::"} {
		a := netip.MustParseAddr(s)
		f.Add(uint8(6), a.AsSlice(), uint16(40000), uint16(8080))
		f.Add(uint8(17), a.AsSlice(), uint16(40000), uint16(81))
	}
	for _, group := range []string{"224.0.0.1", "224.0.0.251", "230.8.8.8", "239.255.255.250", "ff02::1", "ff02::fb"} {
		for _, proto := range []Proto{TCP, UDP} {
			f.Add(uint8(proto), netip.MustParseAddr(group).AsSlice(), uint16(40000), uint16(1900))
		}
	}
	f.Fuzz(func(t *testing.T, proto uint8, dstBytes []byte, sport, dport uint16) {
		da, ok := netip.AddrFromSlice(dstBytes)
		if !ok {
			return
		}
		src := netip.AddrPortFrom(guestOf(da).Addr(), sport)
		dst := netip.AddrPortFrom(da, dport)
		v := p.Judge(Proto(proto), src, dst)
		if v.Action != Allow {
			if v.Reason == None || v.Dst.IsValid() || v.Alt.IsValid() || v.Gateway {
				t.Fatalf("%v: %+v: a verdict other than Allow must have a reason and no destination", dst, v)
			}
			return
		}
		if v.Reason != None || v.Dst.Port() != dport {
			t.Fatalf("%v: %+v: an Allow verdict must have no reason and the guest's port", dst, v)
		}
		if v.Gateway {
			if da.String() != "10.0.2.2" && da.String() != "fd00::2" {
				t.Fatalf("%v: %+v: taken for the gateway", dst, v)
			}
			named := dport == 8080 || dport == 5432
			for _, to := range []netip.Addr{v.Dst.Addr(), v.Alt.Addr()} {
				if named && !to.IsLoopback() || !named && to != cfg.Host4 && to != cfg.Host6 {
					t.Fatalf("%v: %+v: the loopback is open on a port that is not listed, or closed on one that is", dst, v)
				}
			}
			return
		}
		if v.Dst != dst || v.Alt.IsValid() {
			t.Fatalf("%v: %+v: Dst is not the guest's destination", dst, v)
		}
		if da.Is4In6() {
			t.Fatalf("%v: mapped address allowed", dst)
		}
		if da.IsMulticast() {
			if Proto(proto) != UDP || controlBlock.Contains(da) && da != mdns4 && da != llmnr4 {
				t.Fatalf("protocol %d to the group %v allowed", proto, dst)
			}
			return
		}
		for _, closed := range neverDial {
			if closed.Contains(da) && !nat64.Contains(da) && !nat64Local.Contains(da) {
				t.Fatalf("%v allowed, in %v", dst, closed)
			}
			// The IPv4 prefixes of the list, embedded in NAT64 addresses.
			if b := da.As16(); nat64.Contains(da) && closed.Addr().Is4() && closed.Contains(netip.AddrFrom4([4]byte(b[12:]))) {
				t.Fatalf("%v allowed, embeds %v", dst, closed)
			}
		}
	})
}
