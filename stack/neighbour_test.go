package stack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// answersARP sends an ARP request for target and reports whether it is answered. A second request, for the gateway, which always is
// answered, shows when the first has been handled.
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
	// With HostAddresses the gateway's address belongs to another machine, which may or may not answer.
	b.dev.InjectBytes(echoRequest(guest4, gw4, 1, 1, nil))
	if b.answersARP(guest4) || len(b.h.takeEchoes()) != 1 { // by then the frames before have been handled
		t.Error("the echo request did not reach the handler")
	}
}

func TestNoDHCPIsNotAnswered(t *testing.T) {
	b := newBench(t, noOffload(), func(c *Config) { c.NoRA, c.NoDHCP, c.Gateway6 = true, true, netip.Addr{} })
	b.dev.InjectBytes(udpFrame(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), make([]byte, 300)))
	b.quiet("DHCP was answered")
}
