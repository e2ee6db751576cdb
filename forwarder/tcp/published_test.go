package tcp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
)

const servedPort = 80

func served(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), servedPort) }

// publish listens on the host for the guest's port 80.
func (w *world) publish(addr string) *forwarder.PublishedTCP {
	w.t.Helper()
	return w.publishPort(forwardlab.Listen(w.t, addr), servedPort)
}

// publishPort serves l's clients from a port of the guest.
func (w *world) publishPort(l *net.TCPListener, port uint16) *forwarder.PublishedTCP {
	w.t.Helper()
	p, err := w.f.PublishTCP(l, forwarder.Target{Addr: netip.AddrPortFrom(netip.Addr{}, port)}, w.Path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Close)
	return p
}

// Clients on the host's loopback appear as the gateway, with their own port.
func TestTCPPublishedLoopback(t *testing.T) {
	for _, c := range []struct {
		addr   string
		at, gw netip.Addr
	}{{"127.0.0.1:0", forwardlab.Guest4.Addr(), forwardlab.Gateway4}, {"[::1]:0", forwardlab.Guest6.Addr(), forwardlab.Gateway6}} {
		w := newWorld(t, nil)
		l := w.guest.Listen(netip.AddrPortFrom(c.at, servedPort))
		p := w.publish(c.addr)
		h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
		g, client := forwardlab.Answer(t, l)
		if want := netip.AddrPortFrom(c.gw, forwardlab.LocalAddr(h).Port()); client != want {
			t.Errorf("the guest sees %v, want %v", client, want)
		}
		forwardlab.SendString(t, h, "question")
		_ = h.CloseWrite()
		forwardlab.Expect(t, g, "question")
		forwardlab.ExpectEOF(t, g)
		forwardlab.SendString(t, g, "answer")
		_ = g.Close()
		forwardlab.Expect(t, h, "answer")
		forwardlab.ExpectEOF(t, h)
		forwardlab.Eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
		if s := w.Stats(); s.Inbound != 1 || s.BytesToGuest != 8 || s.BytesToHost != 6 {
			t.Errorf("stats %+v", s)
		}
	}
}

// Two loopback clients with the same port both appear as the gateway: they must not share a 4-tuple.
func TestTCPPublishedSameClientPort(t *testing.T) {
	w := newWorld(t, nil)
	l := w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("0.0.0.0:0")
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.Addr().Port())
	h1 := forwardlab.Call(t, netip.AddrPort{}, at)
	g1, c1 := forwardlab.Answer(t, l)
	h2 := forwardlab.Call(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), forwardlab.LocalAddr(h1).Port()), at)
	g2, c2 := forwardlab.Answer(t, l)
	if c1 != netip.AddrPortFrom(forwardlab.Gateway4, forwardlab.LocalAddr(h1).Port()) || c2.Addr() != forwardlab.Gateway4 || c2 == c1 {
		t.Errorf("clients %v and %v", c1, c2)
	}
	forwardlab.SendString(t, h1, "one")
	forwardlab.SendString(t, h2, "two")
	forwardlab.Expect(t, g1, "one")
	forwardlab.Expect(t, g2, "two")
}

// A client that connects to two published ports from one port keeps its port number on both.
func TestTCPPublishedTwoPortsOneClient(t *testing.T) {
	w := newWorld(t, nil)
	l := w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	// Only a port that is given may be shared, so the first call chooses a free one for both.
	fl := forwardlab.NewServer(t, "127.0.0.1:0")
	_ = fl.Close()
	h := forwardlab.Call(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), fl.At.Port()), p.Addr())
	_, c1 := forwardlab.Answer(t, l)
	l2 := w.guest.Listen(netip.AddrPortFrom(forwardlab.Guest4.Addr(), 81))
	p2 := w.publishPort(forwardlab.Listen(t, "127.0.0.1:0"), 81)
	forwardlab.Call(t, forwardlab.LocalAddr(h), p2.Addr())
	if _, c2 := forwardlab.Answer(t, l2); c1 != c2 {
		t.Errorf("%v on one port, %v on the other", c1, c2)
	}
}

func TestTCPPublishedClosedPort(t *testing.T) {
	w := newWorld(t, nil)
	p := w.publish("127.0.0.1:0")
	h, err := net.Dial("tcp", p.Addr().String())
	if err == nil { // or the reset came before connect returned
		defer h.Close()
		forwardlab.ExpectReset(t, h)
	} else if !forwardlab.IsReset(err) {
		t.Error(err)
	}
	if s := w.Stats(); s.Inbound != 0 || s.Active != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A server that listens on one family only is reached by clients of the other, as the gateway.
func TestTCPPublishedOtherFamily(t *testing.T) {
	for _, off := range []bool{false, true} {
		w := newWorld(t, func(c *worldConfig) {
			if off {
				c.Addresses.Guest6, c.Addresses.Gateway6 = netip.Addr{}, netip.Addr{}
			}
		})
		l := w.guest.Listen(served(forwardlab.Guest4))
		p := w.publish("[::1]:0")
		h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
		g, client := forwardlab.Answer(t, l)
		if want := netip.AddrPortFrom(forwardlab.Gateway4, forwardlab.LocalAddr(h).Port()); client != want {
			t.Errorf("guest without IPv6 %v: client %v, want %v", off, client, want)
		}
		forwardlab.SendString(t, h, "x")
		forwardlab.Expect(t, g, "x")
	}
}

func TestTCPPublishedReset(t *testing.T) {
	w := newWorld(t, nil)
	l := w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	g, _ := forwardlab.Answer(t, l)
	forwardlab.Reset(t, h)
	forwardlab.ExpectReset(t, g)
	w.ends(forwardlab.ResetSoon)
}

// The connections of a closed port go on, and the port is free at once.
func TestTCPPublishedClose(t *testing.T) {
	w := newWorld(t, nil)
	l := w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	g, _ := forwardlab.Answer(t, l)
	p.Close()
	p.Close()
	if c, err := net.Dial("tcp", p.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v %v", c, err)
	}
	forwardlab.SendString(t, h, "x")
	forwardlab.Expect(t, g, "x")
	again := w.publish(p.Addr().String())
	h2 := forwardlab.Call(t, netip.AddrPort{}, again.Addr())
	g2, _ := forwardlab.Answer(t, l)
	forwardlab.SendString(t, h2, "y")
	forwardlab.Expect(t, g2, "y")
	w.stop()
	for _, c := range []net.Conn{h, h2} {
		_ = c.SetReadDeadline(time.Now().Add(forwardlab.Patience))
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the end of it all: %v", err)
		}
	}
}

// A client that is accepted when the Path has been closed is reset.
func TestTCPPublishedAfterClose(t *testing.T) {
	w := newWorld(t, nil)
	p := w.publish("127.0.0.1:0")
	w.stop()
	h, err := net.Dial("tcp", p.Addr().String())
	if err == nil { // or the reset came before connect returned
		defer h.Close()
		forwardlab.ExpectReset(t, h)
	} else if !forwardlab.IsReset(err) {
		t.Error(err)
	}
}

// The client of a guest that does not answer waits, and Close does not wait for the guest.
func TestTCPPublishedUnresponsiveGuest(t *testing.T) {
	w := newWorld(t, nil)
	w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	w.wire.OnlySYNs.Store(true)
	h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	forwardlab.Eventually(t, "the client is taken", func() bool { return w.f.TCP.Waiting.Load() == 1 })
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	forwardlab.ExpectReset(t, h)
}
