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

	"rootlessnet/internal/nettest/forwardlab"
)

// The tests of this file run in namespaces, see enterNetns: the policy opens real addresses, not the loopback.

// The guest's connect fails as the host's does, with the same ICMP type and code.
func TestTCPDialErrors(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	w := newWorld(t, nil)
	for _, c := range []struct {
		dst  string
		icmp uint32
		want syscall.Errno // 0: netstack as a guest has none of its own for the code
	}{
		{forwardlab.Router4.String(), 0, syscall.ECONNREFUSED},
		{forwardlab.Router6.String(), 0, syscall.ECONNREFUSED},
		{"198.18.1.1", 3<<8 | 1, syscall.EHOSTUNREACH}, // a router's answers
		{"198.18.2.1", 3<<8 | 13, 0},
		{"2001:db8:bad::1", 1 << 8, syscall.ENETUNREACH},
		{"2001:db8:f0::1", 1<<8 | 1, 0},
		{"192.88.99.9", 3<<8 | 1, syscall.EHOSTUNREACH}, // the host's own routing table
		{"192.0.2.1", 3<<8 | 13, 0},
		{"100.64.0.1", 3 << 8, syscall.ENETUNREACH}, // no route at all
		{"2001:db8:99::1", 1 << 8, syscall.ENETUNREACH},
	} {
		w.wire.ICMP.Store(0)
		// The host's kernel does not see an ICMP error that comes while connect still holds the socket: a second SYN,
		// a second later, gets another.
		_, err := w.guest.Dial(netip.AddrPortFrom(netip.MustParseAddr(c.dst), 9), forwardlab.Patience)
		if err == nil || c.want != 0 && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.dst, err, c.want)
		}
		if got := w.wire.ICMP.Load(); got != c.icmp {
			t.Errorf("%s: ICMP %d/%d, want %d/%d", c.dst, got>>8, got&255, c.icmp>>8, c.icmp&255)
		}
	}
	// The guest has its answer before the attempt is over.
	forwardlab.Eventually(t, "nothing under way", func() bool { s := w.Stats(); return s.Outbound == 0 && s.Dialling == 0 })
}

// Two hundred attempts at a destination that does not answer do not delay connections to other destinations, and Close does not wait for them.
func TestTCPBlackHole(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	n.InRouter(t, func() error { return forwardlab.Route("198.18.3.0/24", "", unix.RTN_BLACKHOLE) })
	l := n.Listen(t, netip.AddrPortFrom(forwardlab.Router4, 0))
	at := netip.AddrPortFrom(forwardlab.Router4, l.Addr().(*net.TCPAddr).AddrPort().Port())
	w := newWorld(t, nil)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			_, err := w.guest.Dial(netip.AddrPortFrom(netip.MustParseAddr("198.18.3.1"), uint16(1000+i)), time.Second)
			if !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("a destination that does not answer: %v", err)
			}
		})
	}
	forwardlab.Eventually(t, "all attempts are under way", func() bool { return w.Stats().Dialling == 200 })
	begin := time.Now()
	g := w.guest.MustDial(at)
	if took := time.Since(begin); took > forwardlab.ResetSoon+forwardlab.RaceSlack {
		t.Errorf("the other destination took %v", took)
	}
	h, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	forwardlab.SendString(t, g, "x")
	forwardlab.Expect(t, h, "x")
	forwardlab.Quietly(t, "dialling")
	wg.Wait()
	begin = time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}

// The guest sees a client under its own address, and can connect to itself by the host's address.
func TestTCPPublishedRealClients(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	w := newWorld(t, nil)
	for _, c := range []struct {
		listen, client netip.Addr
		guest          netip.AddrPort
	}{{forwardlab.Here4, forwardlab.Router4, served(forwardlab.Guest4)}, {forwardlab.Here6, forwardlab.Router6, served(forwardlab.Guest6)}} {
		l := w.guest.Listen(c.guest)
		p := w.publish(netip.AddrPortFrom(c.listen, 0).String())
		h := n.Call(t, p.Addr())
		g, seen := forwardlab.Answer(t, l)
		if seen != forwardlab.LocalAddr(h) || seen.Addr() != c.client {
			t.Errorf("the guest sees %v, want %v", seen, forwardlab.LocalAddr(h))
		}
		forwardlab.SendString(t, h, "x")
		forwardlab.Expect(t, g, "x")
		inside := w.guest.MustDial(p.Addr())
		g, seen = forwardlab.Answer(t, l)
		if seen.Addr() != c.listen {
			t.Errorf("hairpin: the guest sees %v, want %v", seen, c.listen)
		}
		forwardlab.SendString(t, inside, "y")
		forwardlab.Expect(t, g, "y")
		forwardlab.Reset(t, h)
	}
	// A link-local client has an address that names another host on the guest's link.
	var theirs netip.Addr
	n.InRouter(t, func() error { theirs = forwardlab.LinkLocal(t, "lan0"); return nil })
	l := w.guest.Listen(netip.AddrPortFrom(forwardlab.Guest6.Addr(), 81))
	p := w.publishPort(forwardlab.Listen(t, "[::]:0"), 81)
	at := netip.AddrPortFrom(forwardlab.LinkLocal(t, "lan0").WithZone("lan0"), p.Addr().Port())
	h := n.Call(t, at)
	if forwardlab.LocalAddr(h).Addr().WithZone("") != theirs {
		t.Fatalf("the client is %v", forwardlab.LocalAddr(h))
	}
	if _, seen := forwardlab.Answer(t, l); seen != netip.AddrPortFrom(forwardlab.Gateway6, forwardlab.LocalAddr(h).Port()) {
		t.Errorf("a link-local client appears as %v", seen)
	}
}

// The answer to the guest where both destinations of a decision fail.
func TestTCPAlternative(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	w := newWorld(t, nil)
	forwardlab.TestAlternative(t, w.f, w.guest, w.wire)
}
