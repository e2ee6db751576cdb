package stack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"rootlessnet/tap"
)

var (
	guestLL   = netip.MustParseAddr("fe80::1234")
	hostGuest = netip.MustParseAddr("2001:db8::10")
)

// newHostBench is a bench with a guest that has addresses of the host's networks.
func newHostBench(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	return newBench(t, offloads(), func(c *Config) {
		c.Gateway6, c.Subnet6, c.Guest6 = netip.MustParseAddr("fe80::99"), netip.PrefixFrom(hostGuest, 64), hostGuest
		c.Local = []netip.Addr{gw4} // settle waits for its echo reply
		c.HostAddresses, c.DHCPv6, c.FQDN = true, true, "box.example.org"
		c.Guests, c.DNS = []netip.Addr{guest4, hostGuest}, []netip.Addr{netip.MustParseAddr("2001:db8::53"), gw4}
		if change != nil {
			change(c)
		}
	})
}

// dhcp6 sends a client's message and returns the answer, or nil if there is none.
func (b *bench) dhcp6(m *dhcpv6.Message) *dhcpv6.Message {
	b.Helper()
	b.dev.InjectBytes(udpFrame(ap(guestLL, 546), ap(dhcp6Servers, 547), m.ToBytes()))
	answers := b.settle()
	if len(answers) == 0 {
		return nil
	}
	k := b.parse(answers[0])
	if k.proto != protoUDP || k.src != netip.MustParseAddr("fe80::99") || k.dst != guestLL || binary.BigEndian.Uint16(k.payload[2:]) != 546 {
		b.Fatalf("not a DHCPv6 answer: %+v", k)
	}
	r, err := dhcpv6.MessageFromBytes(k.payload[8:])
	if err != nil {
		b.Fatal(err)
	}
	if r.TransactionID != m.TransactionID {
		b.Errorf("transaction %v, want %v", r.TransactionID, m.TransactionID)
	}
	return r
}

func TestDHCPv6(t *testing.T) {
	b := newHostBench(t, nil)
	solicit, err := dhcpv6.NewSolicit(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	adv := b.dhcp6(solicit)
	if adv == nil || adv.MessageType != dhcpv6.MessageTypeAdvertise {
		t.Fatalf("advertise: %v", adv)
	}
	request, err := dhcpv6.NewRequestFromAdvertise(adv)
	if err != nil {
		t.Fatal(err)
	}
	r := b.dhcp6(request)
	if r == nil || r.MessageType != dhcpv6.MessageTypeReply {
		t.Fatalf("reply: %v", r)
	}
	a := r.Options.OneIANA().Options.OneAddress()
	if a == nil || !a.IPv6Addr.Equal(hostGuest.AsSlice()) || a.ValidLifetime != dhcpHostLease || r.Options.OneIANA().T1 != dhcpHostLease/2 {
		t.Errorf("address: %v", a)
	}
	if dns := r.Options.DNS(); len(dns) != 1 || dns[0].String() != "2001:db8::53" {
		t.Errorf("resolvers: %v", dns)
	}
	if l := r.Options.DomainSearchList(); l == nil || len(l.Labels) != 2 || r.Options.FQDN() == nil || r.Options.FQDN().DomainName.Labels[0] != "box.example.org" {
		t.Errorf("names: %v, %v", l, r.Options.FQDN())
	}
	confirm := func() iana.StatusCode {
		m := *request
		m.MessageType = dhcpv6.MessageTypeConfirm
		m.Options = dhcpv6.MessageOptions{Options: append(dhcpv6.Options{}, request.Options.Options...)}
		m.Options.Del(dhcpv6.OptionServerID)
		if r := b.dhcp6(&m); r != nil && r.Options.Status() != nil {
			return r.Options.Status().StatusCode
		}
		return iana.StatusUnspecFail
	}
	if got := confirm(); got != iana.StatusSuccess {
		t.Errorf("confirm: %v", got)
	}
	// The host's address changes: at renewal the guest learns that the old one is no longer valid.
	c := *b.s.config()
	c.Guest6 = netip.MustParseAddr("2001:db8::11")
	if err := b.s.SetAddresses(c); err != nil {
		t.Fatal(err)
	}
	b.settle() // skips the router advertisement
	if got := confirm(); got != iana.StatusNotOnLink {
		t.Errorf("confirm of an address that is no longer valid: %v", got)
	}
	renew := *request
	renew.MessageType = dhcpv6.MessageTypeRenew
	lives := map[string]time.Duration{}
	if r := b.dhcp6(&renew); r != nil {
		for _, a := range r.Options.OneIANA().Options.Addresses() {
			lives[a.IPv6Addr.String()] = a.ValidLifetime
		}
	}
	if len(lives) != 2 || lives["2001:db8::11"] != dhcpHostLease || lives["2001:db8::10"] != 0 {
		t.Errorf("renewed: %v", lives)
	}
}

func TestDHCPv6IgnoresInvalidRequests(t *testing.T) {
	b := newHostBench(t, nil)
	solicit, _ := dhcpv6.NewSolicit(guestMAC)
	adv := b.dhcp6(solicit)
	other, _ := dhcpv6.NewRequestFromAdvertise(adv)
	other.Options.Update(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guestMAC}))
	if r := b.dhcp6(other); r != nil {
		t.Errorf("a request for another server was answered: %v", r)
	}
	anonymous := *solicit
	anonymous.Options = dhcpv6.MessageOptions{}
	if r := b.dhcp6(&anonymous); r != nil {
		t.Errorf("a client without an identifier was answered: %v", r)
	}
	b.dev.InjectBytes(udpFrame(ap(guestLL, 546), ap(dhcp6Servers, 547), []byte("no DHCPv6")))
	b.settle()
	if b.drops(DropDHCP) != 2 || len(b.h.takeUDP()) != 0 {
		t.Errorf("%d dropped", b.drops(DropDHCP))
	}
	off := newHostBench(t, func(c *Config) { c.DHCPv6 = false })
	if r := off.dhcp6(solicit); r != nil {
		t.Errorf("answered although it is off: %v", r)
	}
}

func FuzzDHCPv6(f *testing.F) {
	solicit, err := dhcpv6.NewSolicit(guestMAC)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(solicit.ToBytes())
	b := newFuzzBench(f, noOffload())
	c := *b.s.config()
	c.DHCPv6, c.Guest6 = true, hostGuest
	b.s.cfg.Store(&c)
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) <= 1452 {
			b.receive(t, tap.Header{}, udpFrame(ap(guestLL, 546), ap(dhcp6Servers, 547), message))
		}
	})
}

// TestSetAddresses: after a change, a guest that renews gets the new addresses, and a router advertisement announces them.
func TestSetAddresses(t *testing.T) {
	b := newHostBench(t, nil)
	c := *b.s.config()
	c.Gateway4, c.Guest4, c.Subnet4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.7"), netip.MustParsePrefix("198.51.100.0/24")
	c.Gateway6, c.Guest6, c.Subnet6 = netip.MustParseAddr("fe80::77"), netip.MustParseAddr("2001:db8:2::7"), netip.MustParsePrefix("2001:db8:2::/64")
	c.Guests = []netip.Addr{c.Guest4, c.Guest6}
	if err := b.s.SetAddresses(c); err != nil {
		t.Fatal(err)
	}
	k := b.next()
	if k.proto != protoICMPv6 || k.payload[0] != ndpRouterAdvert || k.src != c.Gateway6 {
		t.Fatalf("no advertisement: %+v", k)
	}
	for prefix, preferred := range map[string]uint32{"2001:db8:2::": raPrefixPreferred, "2001:db8::": 0} {
		a := netip.MustParseAddr(prefix).As16()
		if i := bytes.Index(k.payload, a[:]); i < 16 || binary.BigEndian.Uint32(k.payload[i-8:]) != preferred {
			t.Errorf("prefix %s is missing, or not preferred for %d s: %x", prefix, preferred, k.payload)
		}
	}
	for a, want := range map[netip.Addr]bool{c.Gateway4: true, guest4: true, c.Guest4: false, c.Guest6: false, hostGuest: true} {
		if b.s.isNeighbour(a) != want {
			t.Errorf("answers for %v: %v", a, !want)
		}
	}
	c.Gateway6 = netip.Addr{}
	if b.s.SetAddresses(c) == nil {
		t.Error("a family was disabled")
	}
}

// Duplicate address detection for an address the guest has generated is not answered.
func TestDuplicateDetection(t *testing.T) {
	solicit := func(b *bench, from, target netip.Addr) int {
		m := make([]byte, icmpLen+16)
		m[0] = ndpNeighborSolicit
		a := target.As16()
		copy(m[icmpLen:], a[:])
		dst := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
		b.dev.InjectBytes(icmp6Frame(from, dst, m))
		return len(b.settle())
	}
	b := newHostBench(t, nil)
	none := netip.IPv6Unspecified()
	if n := solicit(b, none, hostGuest); n != 0 {
		t.Errorf("%d answers about the address assigned to the guest", n)
	}
	if n := solicit(b, guestLL, hostGuest); n != 1 {
		t.Errorf("%d answers about the host's address, which the guest has not configured", n)
	}
	if n := solicit(b, none, netip.MustParseAddr("2001:db8::aa")); n != 0 {
		t.Errorf("%d answers about an unused address", n)
	}
	if n := solicit(b, none, netip.MustParseAddr("fe80::99")); n != 1 {
		t.Errorf("%d answers about the gateway's", n)
	}
	off := newHostBench(t, func(c *Config) { c.NoNDP = true })
	if n := solicit(off, none, netip.MustParseAddr("fe80::99")); n != 0 {
		t.Errorf("%d answers although it is off", n)
	}
}
