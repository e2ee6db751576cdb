package userns

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/pooltest"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/netns"
)

// redirectUplink is the name of the tests' link.
const redirectUplink = "eth0"

// redirected starts a sandbox with a link and a TPROXY redirect.
func redirected(t *testing.T, ipv6 bool) (*Sandbox, *netns.RedirectHandles) {
	t.Helper()
	s := start(t, Config{Link: testLink(netns.KindPacket)})
	h, err := s.Redirect(t.Context(), netns.RedirectConfig{Uplink: redirectUplink, IPv6: ipv6})
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
			skip.Missing(t, "nf_tables: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { closeHandles(h) })
	return s, h
}

func closeHandles(h *netns.RedirectHandles) {
	h.Pool.Close()
	h.Rules.Close()
	h.Packets.Close()
	closeAll(h.Listeners)
}

func take(t *testing.T, get func() (int, error)) int {
	t.Helper()
	return pooltest.Take(t, get, netns.ErrPoolEmpty)
}

func transparent(p *netns.Pool, ipv6 bool) func() (int, error) {
	return func() (int, error) { return p.Get(ipv6, false) }
}

func TestRedirect(t *testing.T) {
	s, h := redirected(t, true)
	if len(h.Listeners) != 2 {
		t.Errorf("%d listeners", len(h.Listeners))
	}
	pooltest.CheckClientAddress(t, func(ipv6 bool) int { return take(t, transparent(h.Pool, ipv6)) })
	closeHandles(h)
	if out, code := run(t, s, "cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect /proc/sys/net/ipv4/conf/lo/accept_local"); code != 0 || out != "1\n1\n1" {
		t.Errorf("sysctls inside: %q, %d", out, code)
	}
}

// TestRedirectFails: after a redirect that could not be set up, another can.
func TestRedirectFails(t *testing.T) {
	s := start(t, Config{Link: testLink(netns.KindPacket)})
	for range 3 {
		_, err := s.Redirect(t.Context(), netns.RedirectConfig{Uplink: "nothere0", IPv6: true})
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "nothere0") {
			t.Fatalf("got %v", err)
		}
	}
	h, err := s.Redirect(t.Context(), netns.RedirectConfig{Uplink: redirectUplink})
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Listeners) != 1 {
		t.Errorf("%d listeners without IPv6", len(h.Listeners))
	}
	closeHandles(h)
}

// TestPoolWithoutInit: when init has ended the pool runs empty, and taking a socket does not wait.
func TestPoolWithoutInit(t *testing.T) {
	s, h := redirected(t, false)
	s.Close()
	begin := time.Now()
	for i := range 1000 {
		fd, err := h.Pool.Get(false, false)
		if err != nil {
			if !errors.Is(err, netns.ErrPoolEmpty) {
				t.Errorf("got %v", err)
			}
			break
		}
		unix.Close(fd)
		if i == 999 {
			t.Error("sockets without end from a sandbox that has ended")
		}
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestRedirectForwardedFails: it needs a redirect before it, and a running sandbox.
func TestRedirectForwardedFails(t *testing.T) {
	s := start(t, Config{Link: testLink(netns.KindPacket)})
	if err := s.RedirectForwarded(t.Context(), &netns.RedirectHandles{}); err == nil {
		t.Errorf("got %v", err)
	}
	s2, h := redirected(t, false)
	s2.Close()
	if err := s2.RedirectForwarded(t.Context(), h); err == nil {
		t.Error("in a sandbox that has ended")
	}
}

// TestListen: sockets on the namespace's loopback, in more than one message; a port that cannot be had has its errno.
func TestListen(t *testing.T) {
	s := start(t, Config{Network: NetworkNone})
	var ports []uint16
	for p := range uint16(2*listenMost + 5) {
		ports = append(ports, p+1)
	}
	ports = append(ports, 1)
	for _, proto := range []string{"tcp", "udp"} {
		files, errs, err := s.Listen(t.Context(), proto, ports)
		if err != nil || len(files) != len(ports) || len(errs) != len(ports) {
			t.Fatalf("%s: %d files, %d errors, %v", proto, len(files), len(errs), err)
		}
		for i, f := range files {
			if i == len(files)-1 {
				if f != nil || !errors.Is(errs[i], syscall.EADDRINUSE) {
					t.Errorf("%s port 1 twice: %v, %v", proto, f, errs[i])
				}
				continue
			}
			if f == nil || errs[i] != nil {
				t.Fatalf("%s port %d: %v", proto, ports[i], errs[i])
			}
			defer f.Close()
		}
		fd := int(files[0].Fd())
		device, _ := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
		listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if device != "lo" || listens != 0 != (proto == "tcp") {
			t.Errorf("%s: on %q, listening %d", proto, device, listens)
		}
	}
	if _, _, err := s.Listen(t.Context(), "sctp", ports); err == nil {
		t.Error("a protocol that is none")
	}
	// The connection to init goes on.
	if out, code := run(t, s, "echo on"); out != "on" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
}

// TestSocketPool: a pool without a redirect, with TCP and UDP sockets.
func TestSocketPool(t *testing.T) {
	s := start(t, Config{Network: NetworkNone})
	p, err := s.SocketPool(t.Context(), netns.PoolOptions{IPv6: true, UDP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, ipv6 := range []bool{false, true} {
		unix.Close(take(t, transparent(p, ipv6)))
		fd := take(t, func() (int, error) { return p.GetUDP(ipv6) })
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			t.Errorf("kind %d, %v", kind, err)
		}
		unix.Close(fd)
	}
}
