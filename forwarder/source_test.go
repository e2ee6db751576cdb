package forwarder

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDialFromAnAddress(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from := netip.MustParseAddr("127.0.0.5")
	h, err := dialHost(t.Context(), egress{addr: from}, l.Addr().(*net.TCPAddr).AddrPort(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != from {
		t.Errorf("dialled from %v", got)
	}
	if _, err := dialHost(t.Context(), egress{addr: netip.MustParseAddr("192.0.2.1")}, l.Addr().(*net.TCPAddr).AddrPort(), 0); err == nil {
		t.Error("dialled from an address that nobody has")
	}
}

func TestSourceOfAFlow(t *testing.T) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	s, x := new(Streams), new(Datagrams)
	addrs := Addresses{Source4: a4, Source6: a6, Interface4: 4, Interface6: 6}
	s.SetAddresses(addrs)
	x.addrs.Store(&addrs)
	for dst, want := range map[string]egress{"198.51.100.1": {a4, 4}, "2001:db8::9": {a6, 6}, "127.0.0.1": {}, "::1": {}} {
		to := netip.MustParseAddr(dst)
		if got := s.source(netip.AddrPortFrom(to, 80)); got != want {
			t.Errorf("TCP to %v leaves from %v, want %v", to, got, want)
		}
		if got := x.source(to); got != want {
			t.Errorf("UDP to %v leaves from %v, want %v", to, got, want)
		}
	}
}

// An interface is one that packets have to leave by.
func TestDialByAnInterface(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	h, err := dialHost(t.Context(), egress{index: lo.Index}, to, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	_ = h.rc.Control(func(fd uintptr) {
		if got, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX); err != nil || got != lo.Index {
			t.Errorf("bound to %d, %v", got, err)
		}
	})
	const nobody = 1 << 20
	if _, err := dialHost(t.Context(), egress{index: nobody}, to, 0); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("by an interface that is not there: %v", err)
	}
	// A datagram says it in its own words.
	var c controlBuffer
	c.addLocal(netip.Addr{}, nobody, false)
	c.addLocal(netip.Addr{}, nobody, true)
	msgs, err := unix.ParseSocketControlMessage(c.buf[:c.n])
	if err != nil || len(msgs) != 2 {
		t.Fatal(msgs, err)
	}
	for i, at := range []int{0, 16} { // ipi_ifindex, ipi6_ifindex
		if got := binary.NativeEndian.Uint32(msgs[i].Data[at:]); got != nobody {
			t.Errorf("message %d: interface %d", i, got)
		}
	}
}
