package forwardlab

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"rootlessnet/stack"
)

// Guest is a second netstack, with the addresses Guest4 and Guest6, on the guest's end of a Wire.
type Guest struct {
	t         testing.TB
	stack     *gstack.Stack
	delivered chan struct{}
}

// NewGuest attaches a guest to w. Close ends it, when w is closed.
func NewGuest(t testing.TB, w *Wire) *Guest {
	t.Helper()
	g := &Guest{t: t, stack: newGuestStack(t, w), delivered: make(chan struct{})}
	go func() {
		defer close(g.delivered)
		w.deliverToGuest()
	}()
	return g
}

// Close waits until the wire is closed and ends the guest's stack.
func (g *Guest) Close() {
	<-g.delivered
	g.stack.Destroy()
}

func newGuestStack(t testing.TB, w *Wire) *gstack.Stack {
	t.Helper()
	s := gstack.New(gstack.Options{
		NetworkProtocols:   []gstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{DADConfigs: gstack.DADConfigurations{}})},
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol},
	})
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	tw := tcpip.TCPTimeWaitTimeoutOption(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&rcv, &tw} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateNIC(1, &guestLink{w}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{Guest4.Addr(), Guest6.Addr()} {
		proto := ipv4.ProtocolNumber
		if a.Is6() {
			proto = ipv6.ProtocolNumber
		}
		pa := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(1, pa, gstack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	return s
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func protoOf(a netip.AddrPort) tcpip.NetworkProtocolNumber {
	if a.Addr().Is6() {
		return ipv6.ProtocolNumber
	}
	return ipv4.ProtocolNumber
}

// GuestConn is a connection as a program in the guest has it.
type GuestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Reset closes as with SO_LINGER 0.
func (c *GuestConn) Reset() { c.ep.Abort() }

// Dial connects from the guest; the error is a syscall.Errno.
func (g *Guest) Dial(dst netip.AddrPort, timeout time.Duration) (*GuestConn, error) {
	var wq waiter.Queue
	ep, terr := g.stack.NewEndpoint(tcp.ProtocolNumber, protoOf(dst), &wq)
	if terr != nil {
		return nil, stack.Errno(terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(full(dst))
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-time.After(timeout):
			terr = &tcpip.ErrTimeout{}
		}
	}
	if terr != nil {
		ep.Abort()
		return nil, stack.Errno(terr)
	}
	return &GuestConn{gonet.NewTCPConn(&wq, ep), ep}, nil
}

// MustDial is Dial, which must succeed. The connection is reset at the end of the test.
func (g *Guest) MustDial(dst netip.AddrPort) *GuestConn {
	g.t.Helper()
	c, err := g.Dial(dst, Patience)
	if err != nil {
		g.t.Fatalf("guest to %v: %v", dst, err)
	}
	g.t.Cleanup(func() { c.Reset() })
	return c
}

// Listen opens a server in the guest.
func (g *Guest) Listen(addr netip.AddrPort) *gonet.TCPListener {
	g.t.Helper()
	l, err := gonet.ListenTCP(g.stack, full(addr), protoOf(addr))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = l.Close() })
	return l
}

// Answer takes one connection in the guest and returns it with its client's address.
func Answer(t testing.TB, l *gonet.TCPListener) (net.Conn, netip.AddrPort) {
	t.Helper()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := l.Accept()
		got <- accepted{c, err}
	}()
	a := Receive(t, got, "connection in the guest")
	if a.err != nil {
		t.Fatal(a.err)
	}
	t.Cleanup(func() { _ = a.c.Close() })
	return a.c, a.c.RemoteAddr().(*net.TCPAddr).AddrPort()
}
