package forwardlab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(cerr, err)
}

// Call connects to a TCP address of the host, from a given address or any (the zero value).
func Call(t testing.TB, from, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Control: reuse}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// Listen is a TCP listener of the host, closed at the end of the test.
func Listen(t testing.TB, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// Accept takes the next connection from l, which must come within Patience. It is closed at the end of the test.
func Accept(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(Patience))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Server is a TCP server of the host on a loopback address.
type Server struct {
	*net.TCPListener
	// At is the gateway's address by which the guest reaches it.
	At netip.AddrPort
}

// NewServer listens on a loopback address.
func NewServer(t testing.TB, addr string) *Server {
	t.Helper()
	l := Listen(t, addr)
	a := l.Addr().(*net.TCPAddr).AddrPort()
	gw := Gateway4
	if a.Addr().Is6() {
		gw = Gateway6
	}
	return &Server{l, netip.AddrPortFrom(gw, a.Port())}
}

// Accept is the function Accept.
func (s *Server) Accept(t testing.TB) *net.TCPConn {
	t.Helper()
	return Accept(t, s.TCPListener)
}

// Host is a UDP socket of the host.
type Host struct {
	*net.UDPConn
	At netip.AddrPort // the socket's address
}

// ListenUDP makes a Host. Where descriptors are counted, hosts are made first: cleanups run in reverse.
func ListenUDP(t testing.TB, addr string) *Host {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(AP(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &Host{c, c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// Receive takes the next datagram, which must come within Patience.
func (h *Host) Receive(t testing.TB) (string, netip.AddrPort) {
	t.Helper()
	_ = h.SetReadDeadline(time.Now().Add(Patience))
	b := make([]byte, 65536)
	n, from, err := h.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// ReceiveNothing fails when a datagram comes within QuietFor.
func (h *Host) ReceiveNothing(t testing.TB) {
	t.Helper()
	_ = h.SetReadDeadline(time.Now().Add(QuietFor))
	b := make([]byte, 65536)
	if n, from, err := h.ReadFromUDPAddrPort(b); err == nil {
		t.Fatalf("unexpected %q from %v", b[:n], from)
	}
}

// Send sends one datagram.
func (h *Host) Send(t testing.TB, to netip.AddrPort, s string) {
	t.Helper()
	if _, err := h.WriteToUDPAddrPort([]byte(s), to); err != nil {
		t.Fatal(err)
	}
}
