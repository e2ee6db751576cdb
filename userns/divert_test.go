package userns

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// divertUplink is the name of the tests' link.
const divertUplink = "eth0"

// diverted starts a sandbox with a link and the kernel's road.
func diverted(t *testing.T, ipv6 bool) (*Sandbox, *Diverted) {
	t.Helper()
	s := start(t, Config{Link: testLink(KindPacket)})
	d, err := s.Divert(t.Context(), Diversion{Uplink: divertUplink, IPv6: ipv6})
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
			need(t, "nf_tables: "+err.Error())
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { closeDiverted(d) })
	return s, d
}

func closeDiverted(d *Diverted) {
	d.Mint.Close()
	d.Rules.Close()
	d.Packets.Close()
	closeAll(d.Listeners)
}

// minted waits for a socket, as the first batch is on its way.
func minted(t *testing.T, d *Diverted, ipv6 bool) int {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	for {
		fd, err := d.Mint.Get(ipv6, false)
		if err == nil {
			return fd
		}
		if !errors.Is(err, ErrNoSocket) || time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func TestDivert(t *testing.T) {
	s, d := diverted(t, true)
	if len(d.Listeners) != 2 {
		t.Errorf("%d listeners", len(d.Listeners))
	}
	// A server inside sees whoever a minted socket speaks for, and answers it.
	for _, c := range []struct{ server, client string }{
		{"10.0.2.100:80", "203.0.113.9:5555"},
		{"[fd00::100]:80", "[2001:db8::9]:5555"},
	} {
		server, client := netip.MustParseAddrPort(c.server), netip.MustParseAddrPort(c.client)
		ipv6 := server.Addr().Is6()
		l, fd := minted(t, d, ipv6), minted(t, d, ipv6)
		defer unix.Close(l)
		defer unix.Close(fd)
		if err := errors.Join(unix.Bind(l, sockaddr(server)), unix.Listen(l, 1), unix.Bind(fd, sockaddr(client))); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, sockaddr(server)); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
		waitFD(t, l, unix.POLLIN)
		got, peer, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(got)
		if from := addrPort(peer); from != client {
			t.Errorf("the server saw %v, want %v", from, client)
		}
		waitFD(t, fd, unix.POLLOUT)
		if _, err := unix.Write(got, []byte("x")); err != nil {
			t.Fatal(err)
		}
		waitFD(t, fd, unix.POLLIN)
	}
	closeDiverted(d)
	if out, code := run(t, s, "cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect /proc/sys/net/ipv4/conf/lo/accept_local"); code != 0 || out != "1\n1\n1" {
		t.Errorf("sysctls inside: %q, %d", out, code)
	}
}

// TestDivertFails: nothing of a diversion that cannot be whole is left, and one after it can.
func TestDivertFails(t *testing.T) {
	s := start(t, Config{Link: testLink(KindPacket)})
	for range 3 {
		_, err := s.Divert(t.Context(), Diversion{Uplink: "nothere0", IPv6: true})
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "nothere0") {
			t.Fatalf("got %v", err)
		}
	}
	d, err := s.Divert(t.Context(), Diversion{Uplink: divertUplink})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Listeners) != 1 {
		t.Errorf("%d listeners without IPv6", len(d.Listeners))
	}
	closeDiverted(d)
}

// TestMint: the stock is filled again while it is used, by sockets that are ready; when it is closed it is empty.
func TestMint(t *testing.T) {
	_, d := diverted(t, true)
	for i := range 100 {
		ipv6 := i%2 == 1
		fd := minted(t, d, ipv6)
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if ipv6 {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		for _, o := range []struct{ level, name, want int }{
			{level, option, 1}, {unix.SOL_SOCKET, unix.SO_MARK, markSpeak}, {unix.SOL_SOCKET, unix.SO_TYPE, unix.SOCK_STREAM}, {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		} {
			if v, err := unix.GetsockoptInt(fd, o.level, o.name); err != nil || v != o.want {
				t.Fatalf("socket %d: option %d/%d is %#x, %v; want %#x", i, o.level, o.name, v, err, o.want)
			}
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Fatalf("socket %d blocks: %#x, %v", i, flags, err)
		}
		unix.Close(fd)
	}
	d.Mint.Close()
	d.Mint.Close() // again
	if _, err := d.Mint.Get(false, false); !errors.Is(err, ErrNoSocket) {
		t.Errorf("from a mint that is closed: %v", err)
	}
}

// TestMintKeepsUp: who takes sockets faster than they are made soon finds a larger stock, up to a bound, and a batch is
// never asked for twice.
func TestMintKeepsUp(t *testing.T) {
	_, d := diverted(t, false)
	most := 0
	for end := time.Now().Add(5 * time.Second); most < mintMost/2 && time.Now().Before(end); {
		n := 0
		for {
			fd, err := d.Mint.Get(false, false)
			if errors.Is(err, ErrNoSocket) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			n++
		}
		most = max(most, n)
		time.Sleep(time.Millisecond)
	}
	if most < mintMost/2 || most > 2*mintMost {
		t.Errorf("%d sockets in a row at most", most)
	}
}

// TestMintWithoutInside: when nobody answers any more there are no sockets, and nobody waits.
func TestMintWithoutInside(t *testing.T) {
	s, d := diverted(t, false)
	s.Close()
	begin := time.Now()
	for i := range 1000 {
		fd, err := d.Mint.Get(false, false)
		if err != nil {
			if !errors.Is(err, ErrNoSocket) {
				t.Errorf("got %v", err)
			}
			break
		}
		unix.Close(fd)
		if i == 999 {
			t.Error("sockets without end from a sandbox that is gone")
		}
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

func waitFD(t *testing.T, fd int, events int16) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 5000); n != 1 || err != nil {
		t.Fatalf("poll: %d, %v", n, err)
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
