package pooltest

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

// Take calls get until it returns a socket. An error other than empty, or five seconds without a socket, fail the test: the first
// batch of a pool may not have arrived yet.
func Take(t *testing.T, get func() (int, error), empty error) int {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	for {
		fd, err := get()
		if err == nil {
			return fd
		}
		if !errors.Is(err, empty) || time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// CheckClientAddress connects a transparent socket that is bound to a foreign address to a server in the pool's namespace, for IPv4
// and IPv6: the server sees that address, and its answer arrives. take returns a transparent socket. The namespace must have the
// addresses 10.0.2.100 and fd00::100.
func CheckClientAddress(t *testing.T, take func(ipv6 bool) int) {
	t.Helper()
	for _, c := range []struct{ server, client string }{
		{"10.0.2.100:80", "203.0.113.9:5555"},
		{"[fd00::100]:80", "[2001:db8::9]:5555"},
	} {
		server, client := netip.MustParseAddrPort(c.server), netip.MustParseAddrPort(c.client)
		ipv6 := server.Addr().Is6()
		l, fd := take(ipv6), take(ipv6)
		defer unix.Close(l)
		defer unix.Close(fd)
		if err := errors.Join(rawsock.Bind(l, server), unix.Listen(l, 1), rawsock.Bind(fd, client)); err != nil {
			t.Fatal(err)
		}
		if err := rawsock.Connect(fd, server); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
		await(t, l, unix.POLLIN)
		got, from, err := rawsock.Accept(l)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(got)
		if from != client {
			t.Errorf("the server saw %v, want %v", from, client)
		}
		await(t, fd, unix.POLLOUT)
		if _, err := unix.Write(got, []byte("x")); err != nil {
			t.Fatal(err)
		}
		await(t, fd, unix.POLLIN)
	}
}

// await waits up to five seconds for an event on fd.
func await(t *testing.T, fd int, events int16) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 5000); n != 1 || err != nil {
		t.Fatalf("poll: %d, %v", n, err)
	}
}
