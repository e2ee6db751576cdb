package tcp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const servedPort = 80

func served(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), servedPort) }

// publish listens on the host for the guest's port 80.
func (w *tcpWorld) publish(addr string) *PublishedTCP {
	w.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := w.Publish(l.(*net.TCPListener), servedPort)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// call is a client of a published port, from a given address or any (zero).
func call(t testing.TB, from, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Control: reuse}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// answer takes one connection in the guest and returns it with its client's address.
func answer(t testing.TB, l *gonet.TCPListener) (net.Conn, netip.AddrPort) {
	t.Helper()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := l.Accept()
		got <- accepted{c, err}
	}()
	a := recv(t, got, "connection in the guest")
	if a.err != nil {
		t.Fatal(a.err)
	}
	t.Cleanup(func() { _ = a.c.Close() })
	return a.c, a.c.RemoteAddr().(*net.TCPAddr).AddrPort()
}

func local(c net.Conn) netip.AddrPort { return c.LocalAddr().(*net.TCPAddr).AddrPort() }

// Clients on the host's loopback appear as the gateway, with their own port.
func TestTCPPublishedLoopback(t *testing.T) {
	for _, c := range []struct {
		addr   string
		at, gw netip.Addr
	}{{"127.0.0.1:0", guest4.Addr(), gw4}, {"[::1]:0", guest6.Addr(), gw6}} {
		w := newTCPWorld(t, nil)
		l := w.listen(netip.AddrPortFrom(c.at, servedPort))
		p := w.publish(c.addr)
		h := call(t, netip.AddrPort{}, p.Addr())
		g, client := answer(t, l)
		if want := netip.AddrPortFrom(c.gw, local(h).Port()); client != want {
			t.Errorf("the guest sees %v, want %v", client, want)
		}
		say(t, h, "question")
		_ = h.CloseWrite()
		hear(t, g, "question")
		hearEOF(t, g)
		say(t, g, "answer")
		_ = g.Close()
		hear(t, h, "answer")
		hearEOF(t, h)
		eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
		if s := w.Stats(); s.Inbound != 1 || s.BytesToGuest != 8 || s.BytesToHost != 6 {
			t.Errorf("stats %+v", s)
		}
	}
}

// Two loopback clients with the same port both appear as the gateway: they must not share a 4-tuple.
func TestTCPPublishedSameClientPort(t *testing.T) {
	w := newTCPWorld(t, nil)
	l := w.listen(served(guest4))
	p := w.publish("0.0.0.0:0")
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.Addr().Port())
	h1 := call(t, netip.AddrPort{}, at)
	g1, c1 := answer(t, l)
	h2 := call(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), local(h1).Port()), at)
	g2, c2 := answer(t, l)
	if c1 != netip.AddrPortFrom(gw4, local(h1).Port()) || c2.Addr() != gw4 || c2 == c1 {
		t.Errorf("clients %v and %v", c1, c2)
	}
	say(t, h1, "one")
	say(t, h2, "two")
	hear(t, g1, "one")
	hear(t, g2, "two")
}

// One client port that calls two published ports keeps its number on both.
func TestTCPPublishedTwoPortsOneClient(t *testing.T) {
	w := newTCPWorld(t, nil)
	l := w.listen(served(guest4))
	p := w.publish("127.0.0.1:0")
	// Only a port that was asked for may be shared, so the first call finds a free one for both.
	fl := listenTCP(t, "127.0.0.1:0")
	_ = fl.Close()
	h := call(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), fl.at.Port()), p.Addr())
	_, c1 := answer(t, l)
	l2 := w.listen(netip.AddrPortFrom(guest4.Addr(), 81))
	hl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p2, err := w.Publish(hl.(*net.TCPListener), 81)
	if err != nil {
		t.Fatal(err)
	}
	call(t, local(h), p2.Addr())
	if _, c2 := answer(t, l2); c1 != c2 {
		t.Errorf("%v on one port, %v on the other", c1, c2)
	}
}

func TestTCPPublishedClosedPort(t *testing.T) {
	w := newTCPWorld(t, nil)
	p := w.publish("127.0.0.1:0")
	h, err := net.Dial("tcp", p.Addr().String())
	if err == nil { // or the reset came before connect returned
		defer h.Close()
		hearReset(t, h)
	} else if !isReset(err) {
		t.Error(err)
	}
	if s := w.Stats(); s.Inbound != 0 || s.Active != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A server that listens on one family only is reached by clients of the other, as the gateway.
func TestTCPPublishedOtherFamily(t *testing.T) {
	for _, off := range []bool{false, true} {
		w := newTCPWorld(t, func(c *StreamsConfig) {
			if off {
				c.Guest6, c.Gateway6 = netip.Addr{}, netip.Addr{}
			}
		})
		l := w.listen(served(guest4))
		p := w.publish("[::1]:0")
		h := call(t, netip.AddrPort{}, p.Addr())
		g, client := answer(t, l)
		if want := netip.AddrPortFrom(gw4, local(h).Port()); client != want {
			t.Errorf("guest without IPv6 %v: client %v, want %v", off, client, want)
		}
		say(t, h, "x")
		hear(t, g, "x")
	}
}

// A client's address that the guest would look for on its own link, or that it has, is that of the gateway.
func TestTCPSourceFor(t *testing.T) {
	s := &Streams{cfg: StreamsConfig{Subnets: []netip.Prefix{subnet4, subnet6}}}
	s.addrs.Store(&Addresses{Guests: []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}})
	for _, c := range []struct{ client, want string }{
		{"198.51.100.7:5", "198.51.100.7:5"},
		{"127.8.9.1:5", "10.0.2.2:5"},
		{"10.0.2.9:5", "10.0.2.2:5"},
		{"10.0.2.100:5", "10.0.2.2:5"},
		{"169.254.3.4:5", "10.0.2.2:5"},
		{"0.0.0.0:5", "10.0.2.2:5"},
		{"203.0.113.9:5", "10.0.2.2:5"},
		{"[2001:db8::9]:5", "[fd00::2]:5"},
		{"[2001:db8::7]:5", "[2001:db8::7]:5"},
		{"[::1]:5", "[fd00::2]:5"},
		{"[fe80::7]:5", "[fd00::2]:5"},
		{"[fd00::7]:5", "[fd00::2]:5"},
	} {
		guest, gw := guest4.Addr(), gw4
		if ap(c.client).Addr().Is6() {
			guest, gw = guest6.Addr(), gw6
		}
		if got := s.sourceFor(ap(c.client), guest, gw); got != ap(c.want) {
			t.Errorf("%s appears as %v, want %s", c.client, got, c.want)
		}
	}
}

func TestTCPPublishedReset(t *testing.T) {
	w := newTCPWorld(t, nil)
	l := w.listen(served(guest4))
	p := w.publish("127.0.0.1:0")
	h := call(t, netip.AddrPort{}, p.Addr())
	g, _ := answer(t, l)
	hostReset(t, h)
	hearReset(t, g)
	w.ends(resetSoon)
}

// Closing a port lets its connections go on, and frees the port at once.
func TestTCPPublishedClose(t *testing.T) {
	w := newTCPWorld(t, nil)
	l := w.listen(served(guest4))
	p := w.publish("127.0.0.1:0")
	h := call(t, netip.AddrPort{}, p.Addr())
	g, _ := answer(t, l)
	p.Close()
	p.Close()
	if c, err := net.Dial("tcp", p.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v %v", c, err)
	}
	say(t, h, "x")
	hear(t, g, "x")
	again := w.publish(p.Addr().String())
	h2 := call(t, netip.AddrPort{}, again.Addr())
	g2, _ := answer(t, l)
	say(t, h2, "y")
	hear(t, g2, "y")
	w.stop()
	for _, c := range []net.Conn{h, h2} {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the end of it all: %v", err)
		}
	}
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Publish(nl.(*net.TCPListener), servedPort); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Publish after Close: %v", err)
	}
}

// A guest that does not answer costs its client nothing but a wait, and Close does not wait for it.
func TestTCPPublishedDeafGuest(t *testing.T) {
	w := newTCPWorld(t, nil)
	w.listen(served(guest4))
	p := w.publish("127.0.0.1:0")
	w.wire.deaf.Store(true)
	h := call(t, netip.AddrPort{}, p.Addr())
	eventually(t, "the client is taken", func() bool { return w.clients.Load() == 1 })
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	hearReset(t, h)
}
