package rawsock_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/rawsock"
)

func TestAddr(t *testing.T) {
	for _, c := range []struct {
		addr  string
		v6    bool
		scope uint32
		size  uint32
	}{
		{"192.0.2.1:80", false, 0, unix.SizeofSockaddrInet4},
		{"192.0.2.1:80", true, 0, unix.SizeofSockaddrInet6}, // IPv4-mapped
		{"[2001:db8::1]:65535", true, 0, unix.SizeofSockaddrInet6},
		{"[fe80::1]:1", true, 7, unix.SizeofSockaddrInet6},
	} {
		want := netip.MustParseAddrPort(c.addr)
		var a rawsock.Addr
		size := a.Set(want, c.v6, c.scope)
		if got, scope := a.Get(); got != want || scope != c.scope || size != c.size {
			t.Errorf("%s, v6 %v: %v with scope %d in %d bytes", c.addr, c.v6, got, scope, size)
		}
	}
	if a, _ := new(rawsock.Addr).Get(); a.IsValid() {
		t.Errorf("an address of no family: %v", a)
	}
}

// pair returns both ends of a TCP connection on the loopback.
func pair(t *testing.T, at netip.Addr) (client, server int) {
	t.Helper()
	listener, err := rawsock.Socket(at.Is4())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := rawsock.Bind(listener, netip.AddrPortFrom(at, 0)); err != nil {
		skip.Missing(t, "bind to %v: %v", at, err)
	}
	if _, _, err := rawsock.Accept(listener); err == nil {
		t.Error("Accept succeeded on a socket that does not listen")
	}
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := rawsock.Accept(listener); err != unix.EAGAIN {
		t.Errorf("Accept without a connection: %v, want EAGAIN", err)
	}
	if client, err = rawsock.Socket(at.Is4()); err != nil {
		t.Fatal(err)
	}
	await(t, "the connection", func() bool {
		done, err := rawsock.ConnectState(client, rawsock.LocalAddr(listener))
		if err != nil {
			t.Fatal(err)
		}
		return done
	})
	server, peer, err := rawsock.Accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	if own := rawsock.LocalAddr(client); peer != own || peer.Addr() != at {
		t.Errorf("Accept reports the peer %v, whose address is %v", peer, own)
	}
	return client, server
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within the time limit", what)
		}
	}
}

func TestReset(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "::1"} {
		t.Run(at, func(t *testing.T) {
			nettest.CheckLeaks(t)
			client, server := pair(t, netip.MustParseAddr(at))
			defer unix.Close(client)
			rawsock.NoDelay(client)
			if rawsock.Closed(uintptr(client)) {
				t.Error("an open connection counts as closed")
			}
			rawsock.Reset(server)
			await(t, "the reset", func() bool { return rawsock.Closed(uintptr(client)) })
			if _, err := unix.Read(client, make([]byte, 1)); err != unix.ECONNRESET {
				t.Errorf("read: %v, want ECONNRESET", err)
			}
		})
	}
}

// TestClosedAfterFINs: a connection counts as closed only after both directions have ended.
func TestClosedAfterFINs(t *testing.T) {
	nettest.CheckLeaks(t)
	client, server := pair(t, netip.MustParseAddr("127.0.0.1"))
	defer unix.Close(client)
	_ = unix.Shutdown(server, unix.SHUT_WR)
	await(t, "the FIN", func() bool { n, err := unix.Read(client, make([]byte, 1)); return n == 0 && err == nil })
	if rawsock.Closed(uintptr(client)) {
		t.Error("a half-closed connection counts as closed")
	}
	_ = unix.Shutdown(client, unix.SHUT_WR)
	await(t, "the end", func() bool { return rawsock.Closed(uintptr(client)) })
	unix.Close(server)
}

func TestConnectRefused(t *testing.T) {
	fd, err := rawsock.Socket(true)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := rawsock.Bind(fd, netip.MustParseAddrPort("127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	closed := rawsock.LocalAddr(fd) // bound, but nothing listens on it
	other, err := rawsock.Socket(true)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	await(t, "the refusal", func() bool { _, err := rawsock.ConnectState(other, closed); return err == unix.ECONNREFUSED })
	if a := rawsock.LocalAddr(-1); a.IsValid() {
		t.Errorf("address %v of no socket", a)
	}
}
