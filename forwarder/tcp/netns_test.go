package tcp

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests of this file run in namespaces, see enterNetns: policy opens real addresses, not the loopback's.

func (n *network) listenTCP(t testing.TB, addr netip.AddrPort) (l *net.TCPListener) {
	t.Helper()
	n.inRouter(t, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func (n *network) callTCP(t testing.TB, addr netip.AddrPort) (c *net.TCPConn) {
	t.Helper()
	n.inRouter(t, func() (err error) {
		c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// What the host's connect came to is what the guest's comes to, with the very ICMP code.
func TestTCPDialErrors(t *testing.T) {
	n := enterNetns(t)
	if n == nil {
		return
	}
	n.settleND(t)
	w := newTCPWorld(t, nil)
	for _, c := range []struct {
		dst  string
		icmp uint32
		want syscall.Errno // 0: netstack as a guest has none of its own for the code
	}{
		{router4.String(), 0, syscall.ECONNREFUSED},
		{router6.String(), 0, syscall.ECONNREFUSED},
		{"198.18.1.1", 3<<8 | 1, syscall.EHOSTUNREACH}, // a router's answers
		{"198.18.2.1", 3<<8 | 13, 0},
		{"2001:db8:bad::1", 1 << 8, syscall.ENETUNREACH},
		{"2001:db8:f0::1", 1<<8 | 1, 0},
		{"192.88.99.9", 3<<8 | 1, syscall.EHOSTUNREACH}, // the host's own routing table
		{"192.0.2.1", 3<<8 | 13, 0},
		{"100.64.0.1", 3 << 8, syscall.ENETUNREACH}, // no route at all
		{"2001:db8:99::1", 1 << 8, syscall.ENETUNREACH},
	} {
		w.wire.icmp.Store(0)
		// The host's kernel does not see an ICMP error that comes while connect still holds the socket: a second SYN,
		// a second later, gets another.
		_, err := w.dial(netip.AddrPortFrom(netip.MustParseAddr(c.dst), 9), patience)
		if err == nil || c.want != 0 && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.dst, err, c.want)
		}
		if got := w.wire.icmp.Load(); got != c.icmp {
			t.Errorf("%s: ICMP %d/%d, want %d/%d", c.dst, got>>8, got&255, c.icmp>>8, c.icmp&255)
		}
	}
	// The guest has its answer before the attempt is over.
	eventually(t, "nothing under way", func() bool { s := w.Stats(); return s.Outbound == 0 && s.Dialling == 0 })
}

// Two hundred attempts at a black hole do not hold up anybody, and Close does not wait for them.
func TestTCPBlackHole(t *testing.T) {
	n := enterNetns(t)
	if n == nil {
		return
	}
	n.settleND(t)
	n.inRouter(t, func() error { return route("198.18.3.0/24", "", unix.RTN_BLACKHOLE) })
	l := n.listenTCP(t, netip.AddrPortFrom(router4, 0))
	at := netip.AddrPortFrom(router4, l.Addr().(*net.TCPAddr).AddrPort().Port())
	w := newTCPWorld(t, nil)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			_, err := w.dial(netip.AddrPortFrom(netip.MustParseAddr("198.18.3.1"), uint16(1000+i)), time.Second)
			if !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("black hole: %v", err)
			}
		})
	}
	eventually(t, "all attempts are under way", func() bool { return w.Stats().Dialling == 200 })
	begin := time.Now()
	g := w.mustDial(at)
	if took := time.Since(begin); took > resetSoon+raceSlack {
		t.Errorf("the other destination took %v", took)
	}
	h, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	say(t, g, "x")
	hear(t, h, "x")
	quietly(t, "dialling")
	wg.Wait()
	begin = time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}

// The guest sees who calls, and can call itself by the host's address.
func TestTCPPublishedRealClients(t *testing.T) {
	n := enterNetns(t)
	if n == nil {
		return
	}
	n.settleND(t)
	w := newTCPWorld(t, nil)
	for _, c := range []struct {
		listen, client netip.Addr
		guest          netip.AddrPort
	}{{here4, router4, served(guest4)}, {here6, router6, served(guest6)}} {
		l := w.listen(c.guest)
		p := w.publish(netip.AddrPortFrom(c.listen, 0).String())
		h := n.callTCP(t, p.Addr())
		g, seen := answer(t, l)
		if seen != local(h) || seen.Addr() != c.client {
			t.Errorf("the guest sees %v, want %v", seen, local(h))
		}
		say(t, h, "x")
		hear(t, g, "x")
		inside := w.mustDial(p.Addr())
		g, seen = answer(t, l)
		if seen.Addr() != c.listen {
			t.Errorf("hairpin: the guest sees %v, want %v", seen, c.listen)
		}
		say(t, inside, "y")
		hear(t, g, "y")
		hostReset(t, h)
	}
	// A link-local client has an address that means something else on the guest's link.
	var theirs netip.Addr
	n.inRouter(t, func() error { theirs = linkLocal(t, "lan0"); return nil })
	l := w.listen(netip.AddrPortFrom(guest6.Addr(), 81))
	hl, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Publish(hl.(*net.TCPListener), 81)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(linkLocal(t, "lan0").WithZone("lan0"), p.Addr().Port())
	h := n.callTCP(t, at)
	if local(h).Addr().WithZone("") != theirs {
		t.Fatalf("the client is %v", local(h))
	}
	if _, seen := answer(t, l); seen != netip.AddrPortFrom(gw6, local(h).Port()) {
		t.Errorf("a link-local client appears as %v", seen)
	}
}
