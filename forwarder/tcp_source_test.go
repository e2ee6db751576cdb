package forwarder

import (
	"net"
	"net/netip"
	"testing"
)

func TestDialFromAnAddress(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from := netip.MustParseAddr("127.0.0.5")
	h, err := dialHost(t.Context(), from, l.Addr().(*net.TCPAddr).AddrPort(), 0)
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
	if _, err := dialHost(t.Context(), netip.MustParseAddr("192.0.2.1"), l.Addr().(*net.TCPAddr).AddrPort(), 0); err == nil {
		t.Error("dialled from an address that nobody has")
	}
}

func TestSourceOfAFlow(t *testing.T) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	s, x := new(Streams), new(Datagrams)
	s.SetAddresses(Addresses{Source4: a4, Source6: a6})
	x.addrs.Store(&Addresses{Source4: a4, Source6: a6})
	for dst, want := range map[string]netip.Addr{"198.51.100.1": a4, "2001:db8::9": a6, "127.0.0.1": {}, "::1": {}} {
		to := netip.MustParseAddr(dst)
		if got := s.source(netip.AddrPortFrom(to, 80)); got != want {
			t.Errorf("TCP to %v leaves from %v, want %v", to, got, want)
		}
		if got := x.source(to); got != want {
			t.Errorf("UDP to %v leaves from %v, want %v", to, got, want)
		}
	}
}
