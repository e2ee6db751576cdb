package stack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// answersARP asks who has target and says whether we do; other addresses are asked after the gateway, which always is.
func (b *bench) answersARP(target netip.Addr) bool {
	b.Helper()
	b.dev.InjectBytes(arpRequest(guestMAC, guest4, target), arpRequest(guestMAC, guest4, gw4))
	a := header.ARP(b.dev.MustNext(b, patience).Bufs[0][ethLen:])
	if netip.AddrFrom4([4]byte(a.ProtocolAddressSender())) == gw4 {
		return false
	}
	b.dev.MustNext(b, patience) // the gateway's
	return true
}

func TestLocalAddresses(t *testing.T) {
	dns := netip.MustParseAddr("10.0.2.3")
	b := newBench(t, noOffload(), func(c *Config) { c.Local = []netip.Addr{dns}; c.NoRA, c.Gateway6 = true, netip.Addr{} })
	if !b.answersARP(dns) || b.answersARP(netip.MustParseAddr("10.0.2.4")) || b.answersARP(guest4) {
		t.Error("ARP is not answered for exactly the local addresses")
	}
	b.dev.InjectBytes(echoRequest(guest4, dns, 1, 1, nil))
	if k := b.next(); k.src != dns || k.payload[0] != icmp4EchoReply {
		t.Errorf("ping of a local address: %+v", k)
	}
}

func TestHostAddresses(t *testing.T) {
	b := newBench(t, noOffload(), func(c *Config) {
		c.HostAddresses, c.Guests, c.NoRA, c.Gateway6 = true, []netip.Addr{guest4}, true, netip.Addr{}
	})
	if !b.answersARP(netip.MustParseAddr("10.0.2.77")) || b.answersARP(guest4) {
		t.Error("ARP is not answered for all but the guest's own")
	}
	// The gateway is a machine of its own there: whether it answers is not ours to say.
	b.dev.InjectBytes(echoRequest(guest4, gw4, 1, 1, nil))
	if b.answersARP(guest4) || len(b.h.takeEchoes()) != 1 { // the frames before have been seen to by then
		t.Error("the ping was not handed over")
	}
}

func TestNoRAKeepsSilent(t *testing.T) {
	b := newBench(t, noOffload(), func(c *Config) { c.NoRA, c.NoDHCP, c.Gateway6 = true, true, netip.Addr{} })
	b.dev.InjectBytes(udpFrame(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), make([]byte, 300)))
	b.quiet("DHCP was answered")
}
