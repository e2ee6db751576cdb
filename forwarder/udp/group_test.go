package udp

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// Datagrams to a group leave with their TTL, alone and in GSO batches, and the way is looked up again now and then. Without a way,
// or by the loopback only, they are dropped and counted, without an answer.
func TestGroup(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	for _, dst := range []string{"239.0.0.0/8"} {
		if err := forwardlab.Route(dst, "lan0", 0); err != nil {
			t.Fatal(err)
		}
	}
	group := forwardlab.AP("239.255.255.250:1900")
	var member *forwardlab.Host
	n.InRouter(t, func() error {
		link, err := net.InterfaceByName("lan0")
		if err != nil {
			return err
		}
		c, err := net.ListenMulticastUDP("udp4", link, net.UDPAddrFromAddrPort(group))
		member = &forwardlab.Host{UDPConn: c, At: group}
		return err
	})
	defer member.Close()
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = policy.New(policy.Config{Gateway4: forwardlab.Gateway4, Subnet4: netip.MustParsePrefix("10.0.2.0/24")})
	})
	d := stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: group}, Payload: []byte("oneonetwo"), GSOSize: 3, TTL: 1}
	w.HandleUDP(&d)
	for _, want := range []string{"one", "one", "two"} {
		if got, from := member.Receive(t); got != want || from.Addr() != forwardlab.Here4 {
			t.Errorf("the member got %q from %v, want %q", got, from, want)
		}
	}
	_, mapped := func() (string, netip.AddrPort) { w.send(forwardlab.Guest4, group, "x"); return member.Receive(t) }()
	stranger := n.ListenUDP(t, netip.AddrPortFrom(forwardlab.Router4, 0).String())
	stranger.Send(t, mapped, "here")
	if d := forwardlab.Receive(t, w.g.UDP, "answer"); d.Src != stranger.At {
		t.Errorf("guest got %+v", d)
	}
	w.advance(linkLife)
	w.send(forwardlab.Guest4, group, "again")
	if got, from := member.Receive(t); got != "again" || from != mapped {
		t.Errorf("the member got %q from %v, before from %v", got, from, mapped)
	}

	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(239, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}, Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
	w.advance(linkLife)
	w.send(forwardlab.Guest4, group, "lost")
	if n := w.drops(DropGroup); n != 1 {
		t.Errorf("%d dropped", n)
	}
	member.ReceiveNothing(t)
	d = stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: group}, Payload: []byte("x")}
	w.HandleUDP(&d) // TTL 0
	forwardlab.ReceiveNothing(t, w.g.UDPErr, "ICMP error")
}
