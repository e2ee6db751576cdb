package rootlessport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/unixsock"
)

var localhost = netip.MustParseAddr("127.0.0.1")

// hostDialer dials in this namespace in place of the container's.
type hostDialer struct{}

func (hostDialer) dial(ctx context.Context, proto string, to netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, proto, to.String())
}

func freePort(t *testing.T, proto string) uint16 {
	t.Helper()
	if proto == "udp" {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func startRelay(t *testing.T, p Port) {
	t.Helper()
	r := newRelay(hostDialer{}, localhost, slog.New(slog.DiscardHandler))
	t.Cleanup(r.close)
	if err := publish([]Port{p}, r.listen); err != nil {
		t.Fatal(err)
	}
}

// forRelayAndDirect runs a test for each of the datapaths of TCP that need no other helper.
func forRelayAndDirect(t *testing.T, test func(t *testing.T, start func(*testing.T, Port))) {
	t.Run("relay", func(t *testing.T) {
		nettest.CheckLeaks(t)
		test(t, startRelay)
	})
	t.Run("direct", func(t *testing.T) {
		nettest.CheckLeaks(t)
		test(t, startDirectHere)
	})
}

// publishedServer listens on the loopback and returns the listener, and a port to publish that is forwarded to it.
func publishedServer(t *testing.T) (*net.TCPListener, Port) {
	t.Helper()
	server, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server, Port{Proto: "tcp", Host: localhost, HostPort: freePort(t, "tcp"), ChildPort: server.Addr().(*net.TCPAddr).AddrPort().Port()}
}

func TestTCP(t *testing.T) { forRelayAndDirect(t, testTCP) }

func testTCP(t *testing.T, start func(*testing.T, Port)) {
	server, p := publishedServer(t)
	start(t, p)
	done := make(chan error, 1)
	go func() {
		c, err := server.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		got, err := io.ReadAll(c) // up to the client's FIN
		if err == nil {
			_, err = c.Write(bytes.ToUpper(got))
		}
		done <- err
	}()
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(p.Listens()[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "HELLO" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestTCPRefused: a connection that is refused inside is reset outside, and does not end with FIN.
func TestTCPRefused(t *testing.T) { forRelayAndDirect(t, testTCPRefused) }

func testTCPRefused(t *testing.T, start func(*testing.T, Port)) {
	p := Port{Proto: "tcp", Host: localhost, HostPort: freePort(t, "tcp"), ChildPort: 1}
	start(t, p)
	c, err := net.Dial("tcp4", p.Listens()[0].String())
	if err == nil { // otherwise the reset arrived before connect returned
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// TestTCPReset: a reset by the client reaches the server as a reset, whichever direction's goroutine gets the error. The server has
// filled all buffers, so that the write to the client gets it as often as the read from the client.
func TestTCPReset(t *testing.T) { forRelayAndDirect(t, testTCPReset) }

func testTCPReset(t *testing.T, start func(*testing.T, Port)) {
	server, p := publishedServer(t)
	start(t, p)
	for range 8 {
		c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(p.Listens()[0]))
		if err != nil {
			t.Fatal(err)
		}
		s, err := server.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		for b := make([]byte, 1<<20); ; {
			_ = s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := s.Write(b); err != nil {
				break
			}
		}
		_ = c.SetLinger(0)
		_ = c.Close()
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v, want a reset", err)
		}
		_ = s.Close()
	}
}

func TestRelayUDP(t *testing.T) {
	nettest.CheckLeaks(t)
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(bytes.ToUpper(buf[:n]), from)
		}
	}()
	p := Port{Proto: "udp", Host: localhost, HostPort: freePort(t, "udp"), ChildPort: server.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	startRelay(t, p)
	for _, word := range []string{"one", "two"} {
		c, err := net.Dial("udp4", p.Listens()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		for range 2 {
			_, _ = c.Write([]byte(word))
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != string(bytes.ToUpper([]byte(word))) {
				t.Errorf("got %q, %v", buf[:n], err)
			}
		}
		c.Close()
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRelay(hostDialer{}, localhost, slog.New(slog.DiscardHandler))
	defer r.close()
	err = publish([]Port{{"tcp", localhost, l.Addr().(*net.TCPAddr).AddrPort().Port(), 80}}, r.listen)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want address already in use", err)
	}
}

// TestConnectSocket: connectSocket returns also if the connection is established before it begins to wait.
func TestConnectSocket(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for range 200 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := connectSocket(ctx, fd, l.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := connectSocket(ctx, fd, netip.AddrPortFrom(localhost, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v, want refused", c, err)
	}
}

// TestAddressSocket sends a new address as Podman does.
func TestAddressSocket(t *testing.T) {
	nettest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "rp", "0123456789012345678901234567890123456789012345678901234567890123")
	var got netip.Addr
	s, err := listenAddress(path, func(a netip.Addr) error { got = a; return nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for text, want := range map[string]string{`"10.89.0.7"`: "OK", `"nonsense"`: `invalid address of the container: "nonsense"`} {
		short, done, err := unixsock.ShortPath(path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unixpacket", short)
		done()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(text))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		c.Close()
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%s: answer %q, %v", text, buf[:n], err)
		}
	}
	if got != netip.MustParseAddr("10.89.0.7") {
		t.Errorf("new address %v", got)
	}
}
