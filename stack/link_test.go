package stack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/internal/nettest"
	"rootlessnet/tap"
)

func arpRequest(sender net.HardwareAddr, from, target netip.Addr) []byte {
	a := make([]byte, header.ARPSize)
	h := header.ARP(a)
	h.SetIPv4OverEthernet()
	h.SetOp(header.ARPRequest)
	copy(h.HardwareAddressSender(), sender)
	copy(h.ProtocolAddressSender(), from.AsSlice())
	copy(h.ProtocolAddressTarget(), target.AsSlice())
	f := ether(0x0806, a)
	copy(f[0:6], broadcastMAC[:])
	copy(f[6:12], sender)
	return f
}

func TestARPAnswersForTheGatewayOnly(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	b.dev.InjectBytes(arpRequest(guestMAC, guest4, gw4))
	f := b.dev.MustNext(t, patience).Bufs[0]
	a := header.ARP(f[ethLen:])
	if !a.IsValid() || a.Op() != header.ARPReply || !bytes.Equal(a.HardwareAddressSender(), gwMAC) || !bytes.Equal(a.ProtocolAddressSender(), gw4.AsSlice()) ||
		!bytes.Equal(a.HardwareAddressTarget(), guestMAC) || !bytes.Equal(a.ProtocolAddressTarget(), guest4.AsSlice()) || !bytes.Equal(f[0:6], guestMAC) {
		t.Errorf("reply: %x", f)
	}
	b.dev.InjectBytes(arpRequest(guestMAC, guest4, guest4.Next()), arpRequest(guestMAC, guest4, far4))
	b.quiet("ARP for a stranger")
}

func TestForgedLinkAddressDoesNotRedirectFlow(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	to := &Datagram{Flow: Flow{Src: ap(far4, 53), Dst: ap(guest4, 4000)}, Payload: []byte("x")}
	for i := range 100 {
		forged := net.HardwareAddr{2, 9, 9, 9, byte(i >> 8), byte(i)}
		b.dev.InjectBytes(udpFrame(ap(guest4, 4000), ap(far4, 53), nil), arpRequest(forged, guest4, far4))
	}
	// The last frame has the forged address; its answer shows that it has been handled.
	b.dev.InjectBytes(arpRequest(net.HardwareAddr{2, 9, 9, 9, 9, 9}, guest4, gw4))
	b.dev.MustNext(t, patience)
	if err := b.s.WriteUDP(to); err != nil {
		t.Fatal(err)
	}
	if k := b.next(); !bytes.Equal(k.dstMAC, guestMAC) {
		t.Errorf("sent to %v", k.dstMAC)
	}
}

func TestLinkAddressChange(t *testing.T) {
	s := new(Stack)
	s.cfg.Store(&Config{Subnet4: netip.MustParsePrefix("10.0.2.0/24")})
	s.ports.Store(&[]*port{})
	p := newPort(s, 0, nettest.NewFakeDevice(noOffload()), guestMAC)
	other := net.HardwareAddr{2, 1, 1, 1, 1, 1}
	p.learn(guest4, guestMAC)
	p.learn(guest4, other)
	if p.mac.Load() != macBits(guestMAC) {
		t.Fatal("another link address was accepted at once")
	}
	p.silentSince = time.Now().Add(-2 * macSilence) // instead of waiting
	p.learn(guest4, other)
	if p.mac.Load() != macBits(other) {
		t.Fatal("another link address was not accepted after macSilence")
	}
	p.learn(guest4, guestMAC)
	if p.mac.Load() != macBits(guestMAC) {
		t.Fatal("the address given to AddPort was not accepted at once")
	}
}

func neighborSolicit(src, dst, target netip.Addr) []byte {
	m := make([]byte, 24)
	m[0] = ndpNeighborSolicit
	copy(m[8:], target.AsSlice())
	if !src.IsUnspecified() {
		m = append(append(m, optSourceLinkAddr, 1), guestMAC...)
	}
	return icmp6Frame(src, dst, m)
}

func TestNeighborSolicitation(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	ll := linkLocal([6]byte(gwMAC))
	for _, c := range []struct {
		src, target netip.Addr
		flags       byte
	}{
		{guest6, gw6, 0xe0}, {guest6, ll, 0xe0}, {netip.IPv6Unspecified(), gw6, 0xa0},
	} {
		b.dev.InjectBytes(neighborSolicit(c.src, c.target, c.target))
		k := b.next()
		na := header.NDPNeighborAdvert(k.payload[4:])
		to, mac := c.src, net.HardwareAddr(guestMAC)
		if c.src.IsUnspecified() {
			to, mac = allNodes, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
		}
		if k.payload[0] != ndpNeighborAdvert || k.ttl != 255 || k.src != c.target || k.dst != to || !bytes.Equal(k.dstMAC, mac) ||
			toNetip(na.TargetAddress()) != c.target || k.payload[4] != c.flags {
			t.Errorf("from %v for %v: %+v", c.src, c.target, k)
		}
		it, err := na.Options().Iter(true)
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := it.Next()
		if a, ok := o.(header.NDPTargetLinkLayerAddressOption); err != nil || !ok || string(a.EthernetAddress()) != string(gwMAC) {
			t.Errorf("option %v %v", o, err)
		}
	}
	before := b.drops(DropNDP)
	far := neighborSolicit(guest6, guest6.Next(), guest6.Next())
	forwarded := neighborSolicit(guest6, gw6, gw6)
	forwarded[ethLen+7] = 64
	short := icmp6Frame(guest6, gw6, []byte{ndpNeighborSolicit, 0, 0, 0, 0, 0, 0, 0, 1})
	b.dev.InjectBytes(far, forwarded, short)
	b.quiet("a solicitation for another, or a bad one")
	if n := b.drops(DropNDP) - before; n != 2 {
		t.Errorf("%d dropped, want 2", n)
	}
}

func TestRouterAdvertisement(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	ll := netip.MustParseAddr("fe80::15")
	for _, from := range []netip.Addr{ll, netip.IPv6Unspecified()} {
		b.dev.InjectBytes(icmp6Frame(from, netip.MustParseAddr("ff02::2"), make([]byte, 8))) // type 0 is undefined
		m := make([]byte, 8)
		m[0] = ndpRouterSolicit
		b.dev.InjectBytes(icmp6Frame(from, netip.MustParseAddr("ff02::2"), m))
		k := b.next()
		want := from
		if from.IsUnspecified() {
			want = allNodes
		}
		if k.payload[0] != ndpRouterAdvert || k.dst != want || k.src != linkLocal([6]byte(gwMAC)) || k.ttl != 255 {
			t.Fatalf("not an advertisement for %v: %+v", want, k)
		}
		ra := header.NDPRouterAdvert(k.payload[4:])
		if ra.RouterLifetime() != raRouterLifetime*time.Second || ra.ManagedAddrConfFlag() || ra.OtherConfFlag() {
			t.Errorf("RA %x", ra)
		}
		it, err := ra.Options().Iter(true)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for {
			o, done, err := it.Next()
			if err != nil {
				t.Fatal(err)
			}
			if done {
				break
			}
			switch o := o.(type) {
			case header.NDPPrefixInformation:
				seen["prefix"] = o.OnLinkFlag() && o.AutonomousAddressConfigurationFlag() && o.PrefixLength() == 64 &&
					toNetip(o.Prefix()) == netip.MustParseAddr("fd00::") && o.ValidLifetime() == raPrefixValid*time.Second
			case header.NDPRecursiveDNSServer:
				as, err := o.Addresses()
				seen["dns"] = err == nil && len(as) == 1 && toNetip(as[0]) == gw6
			case header.NDPDNSSearchList:
				names, err := o.DomainNames()
				seen["search"] = err == nil && len(names) == 2 && names[0] == "example.org" && names[1] == "lan"
			case header.NDPSourceLinkLayerAddressOption:
				seen["link"] = string(o.EthernetAddress()) == string(gwMAC)
			}
		}
		for _, w := range []string{"prefix", "dns", "search", "link"} {
			if !seen[w] {
				t.Errorf("option %s is wrong or missing in %x", w, ra)
			}
		}
		if i := bytes.Index(k.payload, []byte{optMTU, 1, 0, 0}); i < 0 || binary.BigEndian.Uint32(k.payload[i+4:]) != 1500 {
			t.Errorf("no MTU option in %x", k.payload)
		}
	}
}

// dhcp sends a client's message and returns the answer, or nil if there is none.
func (b *bench) dhcp(m *dhcpv4.DHCPv4, from netip.Addr) (*dhcpv4.DHCPv4, received) {
	b.Helper()
	to := limitedBroadcast
	if !from.IsUnspecified() {
		to = gw4
	}
	b.dev.InjectBytes(udpFrame(ap(from, 68), ap(to, 67), m.ToBytes()))
	answers := b.settle()
	if len(answers) == 0 {
		return nil, received{}
	}
	k := b.parse(answers[0])
	if k.proto != protoUDP || binary.BigEndian.Uint16(k.payload) != 67 || binary.BigEndian.Uint16(k.payload[2:]) != 68 || !bytes.Equal(k.dstMAC, guestMAC) {
		b.Fatalf("not a DHCP answer: %+v", k)
	}
	r, err := dhcpv4.FromBytes(k.payload[8:])
	if err != nil {
		b.Fatal(err)
	}
	return r, k
}

func TestDHCP(t *testing.T) {
	b := newBench(t, offloads(), nil)
	none := netip.IPv4Unspecified()
	disc, _ := dhcpv4.NewDiscovery(guestMAC)
	offer, k := b.dhcp(disc, none)
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || k.dst != limitedBroadcast || offer.TransactionID != disc.TransactionID {
		t.Fatalf("offer: %v", offer)
	}
	req, _ := dhcpv4.NewRequestFromOffer(offer)
	ack, _ := b.dhcp(req, none)
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("ack: %v", ack)
	}
	mask, _ := ack.SubnetMask().Size()
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	if !ack.YourIPAddr.Equal(guest4.AsSlice()) || mask != 24 || len(ack.Router()) != 1 || !ack.Router()[0].Equal(gw4.AsSlice()) ||
		len(ack.DNS()) != 1 || !ack.DNS()[0].Equal(gw4.AsSlice()) || mtu != 1500 || ack.HostName() != "box" ||
		ack.IPAddressLeaseTime(0) != dhcpLease || len(ack.DomainSearch().Labels) != 2 {
		t.Errorf("ack: %s", ack.Summary())
	}

	renew, _ := dhcpv4.NewRenewFromAck(ack)
	if r, k := b.dhcp(renew, guest4); r == nil || r.MessageType() != dhcpv4.MessageTypeAck || k.dst != guest4 {
		t.Errorf("a renewing client listens on its own address only; answer to %v: %v", k.dst, r)
	}
	inform, _ := dhcpv4.NewInform(guestMAC, guest4.AsSlice())
	if r, k := b.dhcp(inform, guest4); r == nil || r.MessageType() != dhcpv4.MessageTypeAck || !r.YourIPAddr.IsUnspecified() || k.dst != guest4 {
		t.Errorf("inform: %v", r)
	}
	wrong, _ := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithHwAddr(guestMAC),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 0, 9))))
	if r, k := b.dhcp(wrong, none); r == nil || r.MessageType() != dhcpv4.MessageTypeNak || k.dst != limitedBroadcast {
		t.Errorf("nak: %v", r)
	}
	other, _ := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 2, 9))))
	if r, _ := b.dhcp(other, none); r != nil {
		t.Errorf("a request for another server was answered: %v", r)
	}
	release, _ := dhcpv4.NewReleaseFromACK(ack)
	if r, _ := b.dhcp(release, guest4); r != nil {
		t.Errorf("a release was answered: %v", r)
	}
	b.dev.InjectBytes(udpFrame(ap(none, 68), ap(limitedBroadcast, 67), []byte("not DHCP")))
	b.settle()
	if b.drops(DropDHCP) != 1 || len(b.h.takeUDP()) != 0 {
		t.Errorf("garbage: %d dropped", b.drops(DropDHCP))
	}
}

func TestDHCPAnswerHasLimitedSize(t *testing.T) {
	b := newBench(t, noOffload(), func(c *Config) {
		c.SearchDomains = nil
		for i := range 40 {
			c.SearchDomains = append(c.SearchDomains, string(rune('a'+i%26))+"-rather-long-domain-name.example.org")
		}
	})
	disc, _ := dhcpv4.NewDiscovery(guestMAC)
	offer, k := b.dhcp(disc, netip.IPv4Unspecified())
	if offer == nil || len(k.payload) > 576-20 || !offer.YourIPAddr.Equal(guest4.AsSlice()) {
		t.Errorf("%d bytes: %v", len(k.payload), offer)
	}
}

func TestStackContinuesAfterPortEnds(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	ended := make(chan error, 2)
	second := nettest.NewFakeDevice(tap.Info{MTU: 1500, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x16}})
	if err := b.s.AddPort(0, second, second.Info().MAC, func(err error) { ended <- err }); err != nil {
		t.Fatal(err)
	}
	g2 := guest4.Next()
	f := udpFrame(ap(g2, 5), ap(far4, 5), nil)
	copy(f[6:12], second.Info().MAC)
	second.InjectBytes(f)
	forged := udpFrame(ap(g2, 5), ap(far4, 5), nil) // arrives at the first port with the second guest's address
	b.settle()
	for len(b.h.takeUDP()) == 0 {
		time.Sleep(time.Millisecond)
	}
	b.dev.InjectBytes(forged)
	b.settle()
	second.Written()
	if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: ap(far4, 5), Dst: ap(g2, 5)}}); err != nil {
		t.Fatal(err)
	}
	if f, ok := second.Next(patience); !ok || !bytes.Equal(f.Bufs[0][0:6], second.Info().MAC) {
		t.Error("the second guest did not receive its datagram")
	}
	second.Close()
	if err := <-ended; err == nil {
		t.Error("onEnd was called without an error")
	}
	b.settle()
	b.s.Close()
	if err := b.s.AddPort(0, nettest.NewFakeDevice(tap.Info{}), nil, nil); err == nil {
		t.Error("AddPort succeeded on a closed stack")
	}
	if _, err := b.s.DialTCP(t.Context(), ap(far4, 1), ap(guest4, 1)); err == nil {
		t.Error("DialTCP succeeded on a closed stack")
	}
}
