package udp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// A guest on a link with a larger MTU than the host's marks its datagrams DF nevertheless; they arrive, the first one
// as well. An MTU of the path that is smaller is reported to the guest nevertheless.
func TestUDPLargerThanTheLink(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	const shrink = 20 // of the link's MTU
	for _, c := range []struct {
		src    netip.AddrPort
		router netip.Addr
		narrow netip.AddrPort
		header int
		want   stack.ICMPError
	}{
		{forwardlab.Guest4, forwardlab.Router4, forwardlab.AP("203.0.113.9:7"), udp4Headers, stack.ICMPError{Type: 3, Code: 4, MTU: forwardlab.NarrowMTU}},
		{forwardlab.Guest6, forwardlab.Router6, forwardlab.AP("[2001:db8:203::9]:7"), udp6Headers, stack.ICMPError{Type: 2, MTU: forwardlab.NarrowMTU}},
	} {
		h, idle := n.ListenUDP(t, netip.AddrPortFrom(c.router, 0).String()), n.ListenUDP(t, netip.AddrPortFrom(c.router, 0).String())
		w := newWorld(t, nil)
		send := func(dst netip.AddrPort, size, gso int) {
			w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: c.src, Dst: dst}, Payload: []byte(forwardlab.Repeat(size)), TTL: 64, GSOSize: uint16(gso), DF: true})
		}
		arrive := func(sizes ...int) {
			t.Helper()
			for _, size := range sizes {
				if s, _ := h.Receive(t); len(s) != size {
					t.Errorf("%v: got %d bytes, want %d", h.At, len(s), size)
				}
			}
		}
		fits := forwardlab.WideMTU - c.header
		for _, size := range []int{9000, 9000, fits, fits + 1, 5, 60000} {
			send(h.At, size, 0)
			arrive(size)
		}
		send(h.At, 6500, 2000) // a GSO batch, of the flow that has the MTU of the link
		arrive(2000, 2000, 2000, 500)
		w.advance(linkLife)
		send(h.At, 6500, 2000) // and of one that does not
		arrive(2000, 2000, 2000, 500)
		forwardlab.ReceiveNothing(t, w.g.UDPErr, "error")
		if d := w.drops(DropTooBig); d != 0 {
			t.Errorf("%d dropped as too big", d)
		}

		// What fits the link and not the path is answered, also when the link is known, by the router first and then
		// from the host's record of that answer.
		for i := range 3 {
			send(c.narrow, 1400, 0)
			e := forwardlab.Receive(t, w.g.UDPErr, "error")
			if want := c.want; i > 0 && e.E != want || e.E.MTU != forwardlab.NarrowMTU || len(e.Payload) == 0 {
				t.Errorf("%v: %+v, want %+v", c.narrow, e, want)
			}
		}
		forwardlab.ReceiveNothing(t, w.g.UDPErr, "error")
		// The host's kernel fragments to the path's MTU what is larger than the link.
		send(c.narrow, 9000, 0)
		forwardlab.ReceiveNothing(t, w.g.UDPErr, "error")

		large := stack.Datagram{Flow: stack.Flow{Src: c.src, Dst: idle.At}, Payload: []byte(forwardlab.Repeat(9000)), TTL: 64, DF: true}
		w.HandleUDP(&large)
		if n := testing.AllocsPerRun(50, func() { w.HandleUDP(&large) }); n != 0 {
			t.Errorf("%v: %v allocations a large datagram", h.At, n)
		}

		// The MTU of the link is read again after linkLife.
		setMTU(t, forwardlab.WideMTU-shrink)
		w.advance(linkLife)
		send(h.At, fits, 0)
		arrive(fits)
		forwardlab.ReceiveNothing(t, w.g.UDPErr, "error")
		setMTU(t, forwardlab.WideMTU)
	}
}

func setMTU(t testing.TB, mtu int) {
	t.Helper()
	l, err := netlink.LinkByName("lan0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(l, mtu); err != nil {
		t.Fatal(err)
	}
}

func TestInterfaceMTU(t *testing.T) {
	to := target{peer: forwardlab.AP("127.0.0.1:9")}
	to.findLink()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if want := lo.Attrs().MTU; to.link != want {
		t.Errorf("the MTU towards loopback is %d, want %d", to.link, want)
	}
	if got := interfaceMTU(1 << 30); got != 0 {
		t.Errorf("the MTU of no interface is %d", got)
	}
}

// An interface by which a datagram shall leave is in its control message.
func TestUDPControlNamesTheInterface(t *testing.T) {
	const absent = 1 << 20
	var c controlBuffer
	c.addLocal(netip.Addr{}, absent, false)
	c.addLocal(netip.Addr{}, absent, true)
	msgs, err := unix.ParseSocketControlMessage(c.buf[:c.n])
	if err != nil || len(msgs) != 2 {
		t.Fatal(msgs, err)
	}
	for i, at := range []int{0, 16} { // ipi_ifindex, ipi6_ifindex
		if got := binary.NativeEndian.Uint32(msgs[i].Data[at:]); got != absent {
			t.Errorf("message %d: interface %d", i, got)
		}
	}
}
