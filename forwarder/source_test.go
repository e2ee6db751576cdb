package forwarder_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/rawsock"
)

// startDial connects to dst, which must work.
func startDial(t testing.TB, from forwarder.Egress, dst netip.AddrPort) (fd int) {
	t.Helper()
	fd, done, err := forwarder.StartDial(from, dst, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	forwardlab.Eventually(t, "connected", func() bool {
		if !done {
			if done, err = rawsock.ConnectState(fd, dst); err != nil {
				t.Fatal(err)
			}
		}
		return done
	})
	return fd
}

func TestDialFromAnAddress(t *testing.T) {
	l := forwardlab.Listen(t, "127.0.0.1:0")
	to := l.Addr().(*net.TCPAddr).AddrPort()
	from := netip.MustParseAddr("127.0.0.5")
	startDial(t, forwarder.Egress{Addr: from}, to)
	c := forwardlab.Accept(t, l)
	if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != from {
		t.Errorf("dialled from %v", got)
	}
	fd, _, err := forwarder.StartDial(forwarder.Egress{Addr: netip.MustParseAddr("192.0.2.1")}, to, 0)
	if err == nil {
		t.Error("dialled from an address that this host does not have")
	}
	var de *forwarder.DialError
	if !errors.As(err, &de) || !errors.Is(err, syscall.EADDRNOTAVAIL) || fd != -1 {
		t.Errorf("descriptor %d, error %v", fd, err)
	}
}

func TestEgressOfAFlow(t *testing.T) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	addrs := forwarder.Addresses{Source4: a4, Source6: a6, Interface4: 4, Interface6: 6, Host4: netip.MustParseAddr("203.0.113.5")}
	for dst, want := range map[string]forwarder.Egress{"198.51.100.1": {Addr: a4, Index: 4}, "2001:db8::9": {Addr: a6, Index: 6}, "127.0.0.1": {}, "::1": {},
		"203.0.113.5": {}} { // the host itself

		if got := addrs.EgressTo(netip.MustParseAddr(dst)); got != want {
			t.Errorf("a flow to %v leaves from %v, want %v", dst, got, want)
		}
	}
}

// With an interface, packets leave by that interface only.
func TestDialByAnInterface(t *testing.T) {
	l := forwardlab.Listen(t, "127.0.0.1:0")
	to := l.Addr().(*net.TCPAddr).AddrPort()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	fd := startDial(t, forwarder.Egress{Index: lo.Index}, to)
	if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX); err != nil || got != lo.Index {
		t.Errorf("bound to %d, %v", got, err)
	}
	const absent = 1 << 20
	if _, _, err := forwarder.StartDial(forwarder.Egress{Index: absent}, to, 0); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("by an interface that does not exist: %v", err)
	}
}

// A client with an address of the guest's own link, or of the guest, appears with the gateway's address.
func TestClientSource(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	e := f.AddEndpoint(forwarder.EndpointConfig{Policy: forwardlab.JudgeFunc(nil), Subnets: []netip.Prefix{forwardlab.Subnet4, forwardlab.Subnet6},
		Addresses: forwarder.Addresses{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6,
			Guests: []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}}})
	for _, c := range []struct{ client, want string }{
		{"198.51.100.7:5", "198.51.100.7:5"},
		{"127.8.9.1:5", "10.0.2.2:5"},
		{"10.0.2.9:5", "10.0.2.2:5"},
		{"10.0.2.100:5", "10.0.2.2:5"},
		{"169.254.3.4:5", "10.0.2.2:5"},
		{"0.0.0.0:5", "10.0.2.2:5"},
		{"203.0.113.9:5", "10.0.2.2:5"},
		{"[2001:db8::9]:5", "[fd00::2]:5"},
		{"[2001:db8::7]:5", "[2001:db8::7]:5"},
		{"[::1]:5", "[fd00::2]:5"},
		{"[fe80::7]:5", "[fd00::2]:5"},
		{"[fd00::7]:5", "[fd00::2]:5"},
	} {
		client, guest := forwardlab.AP(c.client), forwardlab.Guest4.Addr()
		if client.Addr().Is6() {
			guest = forwardlab.Guest6.Addr()
		}
		if got := e.ClientSource(client, guest); got != forwardlab.AP(c.want) {
			t.Errorf("%s appears as %v, want %s", c.client, got, c.want)
		}
	}
}
