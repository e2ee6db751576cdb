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

// here opens sockets of this namespace in place of the container's. The sockets need not be transparent, because clients on the
// loopback are given another source address. On every other call the pool is empty.
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

// fullServer returns the port of a listener with a backlog of one connection, which is full. accept accepts that connection and the next.
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

// rawConn implements the methods of a connection that the test uses.
type rawConn struct {
	net.Conn
	fd int
}

func (c *rawConn) Write(b []byte) (int, error) { return unix.Write(c.fd, b) }
func (c *rawConn) Close() error                { return unix.Close(c.fd) }

// TestDirectServerIsBusy: a client is connected when the server's backlog has space again.
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

// TestDirectEndsWhileDialling: close resets clients whose connection to the server is not established yet.
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
			t.Error("no connection is being established")
			break
		}
	}
	d.close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %v, want a reset", err)
	}
}
