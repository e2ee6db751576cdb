package rootlessport

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/rawsock"
	"rootlessnet/netns"
)

// here opens sockets of this namespace in place of the container's. A client on the loopback has no address inside, so that the
// sockets need not be transparent. Every other time the pool is empty.
func here() getSocket {
	n := 0
	return func(ipv6, _ bool) (int, error) {
		if n++; n%2 == 1 {
			return -1, netns.ErrPoolEmpty
		}
		return rawsock.Socket(!ipv6)
	}
}

func startDirectHere(t *testing.T, p Port) {
	t.Helper()
	d, err := startDirect(here(), localhost, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	if err := publish([]Port{p}, d.listen); err != nil {
		t.Fatal(err)
	}
}

// fullServer listens with room for one connection, and has it. accept takes it, and the next one.
func fullServer(t *testing.T) (port uint16, accept func() (first, second net.Conn)) {
	t.Helper()
	fd, err := rawsock.Socket(true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: localhost.As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at := rawsock.LocalAddr(fd)
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	take := func() net.Conn {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			n, _, err := rawsock.Accept(fd)
			if err == unix.EAGAIN && time.Now().Before(end) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			return &rawConn{fd: n}
		}
	}
	return at.Port(), func() (net.Conn, net.Conn) { return take(), take() }
}

// rawConn is as much of a connection as the test needs.
type rawConn struct {
	net.Conn
	fd int
}

func (c *rawConn) Write(b []byte) (int, error) { return unix.Write(c.fd, b) }
func (c *rawConn) Close() error                { return unix.Close(c.fd) }

// TestDirectServerIsBusy: a client waits for a server that is slow to accept.
func TestDirectServerIsBusy(t *testing.T) {
	nettest.CheckLeaks(t)
	childPort, accept := fullServer(t)
	p := Port{Proto: "tcp", Host: localhost, HostPort: freePort(t, "tcp"), ChildPort: childPort}
	startDirectHere(t, p)
	c, err := net.Dial("tcp4", p.Listens()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.Sleep(50 * time.Millisecond)
	first, second := accept()
	defer first.Close()
	fmt.Fprint(second, "at last")
	second.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); err != nil || string(got) != "at last" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestDirectEndsWhileDialling: the end of the helper resets clients whose connection is not established yet.
func TestDirectEndsWhileDialling(t *testing.T) {
	nettest.CheckLeaks(t)
	childPort, _ := fullServer(t)
	p := Port{Proto: "tcp", Host: localhost, HostPort: freePort(t, "tcp"), ChildPort: childPort}
	d, err := startDirect(here(), localhost, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := publish([]Port{p}, d.listen); err != nil {
		d.close()
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", p.Listens()[0].String())
	if err != nil {
		d.close()
		t.Fatal(err)
	}
	defer c.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		waiting := d.waiting.Len()
		if waiting == 1 {
			break
		}
		if time.Now().After(end) {
			t.Error("nothing is being dialled")
			break
		}
	}
	d.close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %v, want a reset", err)
	}
}
