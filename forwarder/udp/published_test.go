package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

var (
	server4 = forwardlab.AP("10.0.2.100:80")
	server6 = forwardlab.AP("[fd00::100]:80")
)

func publish(t testing.TB, w *world, l UDPListen) *UDPPort {
	t.Helper()
	p, err := w.ListenUDP(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func at(p *UDPPort, host string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), p.Addr().Port())
}

// answer is what the server inside sends back on d.
func (w *world) answer(d stack.Datagram, s string) {
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: d.Dst, Dst: d.Src}, Payload: []byte(s), TTL: 64})
}

// Loopback clients appear as the gateway, each with a port of its own, and are answered from the address to which they sent.
func TestPublishedLoopbackClients(t *testing.T) {
	a, b := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.2:0")
	same := forwardlab.ListenUDP(t, fmt.Sprintf("127.0.0.3:%d", a.At.Port()))
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
			return policy.Verdict{Reason: policy.Loopback} // the policy must not judge an answer
		})
	})
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("0.0.0.0:0"), Guest4: server4, Guest6: server6})
	seen := map[netip.AddrPort]bool{}
	for _, c := range []struct {
		h  *forwardlab.Host
		to string
	}{{a, "127.0.0.1"}, {b, "127.0.0.9"}, {same, "127.0.0.1"}} {
		c.h.Send(t, at(p, c.to), "hello")
		d := forwardlab.Receive(t, w.g.UDP, "datagram")
		if d.Dst != server4 || d.Src.Addr() != forwardlab.Gateway4 || string(d.Payload) != "hello" || d.TTL != 63 {
			t.Errorf("guest got %+v", d)
		}
		if c.h != same && d.Src.Port() != c.h.At.Port() {
			t.Errorf("client %v appears as %v", c.h.At, d.Src)
		}
		if seen[d.Src] {
			t.Errorf("two clients appear as %v", d.Src)
		}
		seen[d.Src] = true
		w.answer(d, "back")
		if s, from := c.h.Receive(t); s != "back" || from != at(p, c.to) {
			t.Errorf("client got %q from %v, want it from %v", s, from, at(p, c.to))
		}
	}
	for _, f := range w.f.Flows.List() {
		if f.Direction != flow.Inbound || f.State != flow.Established {
			t.Errorf("flow %+v", f)
		}
	}
	if st := w.Stats(); st.Sockets != 0 || st.Flows != 3 {
		t.Errorf("stats %+v", st)
	}
}

func TestPublishedIPv6(t *testing.T) {
	c := forwardlab.ListenUDP(t, "[::1]:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4, Guest6: server6})
	c.Send(t, at(p, "::1"), "hello")
	d := forwardlab.Receive(t, w.g.UDP, "datagram")
	if d.Dst != server6 || d.Src.Addr() != forwardlab.Gateway6 {
		t.Errorf("guest got %+v", d)
	}
	w.answer(d, "back")
	if s, from := c.Receive(t); s != "back" || from != at(p, "::1") {
		t.Errorf("client got %q from %v", s, from)
	}
}

// A v6 client reaches a server on IPv4 only: there is no IPv6 inside, or the guest answers that nothing listens there.
func TestPublishedOtherFamily(t *testing.T) {
	c := forwardlab.ListenUDP(t, "[::1]:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4})
	c.Send(t, at(p, "::1"), "a")
	d := forwardlab.Receive(t, w.g.UDP, "datagram")
	if d.Dst != server4 || d.Src != netip.AddrPortFrom(forwardlab.Gateway4, c.At.Port()) {
		t.Errorf("guest got %+v", d)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}

	p = publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4, Guest6: server6})
	c.Send(t, at(p, "::1"), "b")
	d = forwardlab.Receive(t, w.g.UDP, "datagram")
	if d.Dst != server6 {
		t.Fatalf("guest got %+v", d)
	}
	w.HandleUDPError(stack.Flow{Src: d.Src, Dst: d.Dst}, stack.PortUnreachable(false))
	d = forwardlab.Receive(t, w.g.UDP, "the same datagram over IPv4")
	if d.Dst != server4 || string(d.Payload) != "b" || d.Src.Addr() != forwardlab.Gateway4 {
		t.Fatalf("guest got %+v", d)
	}
	w.answer(d, "back")
	if s, from := c.Receive(t); s != "back" || from != at(p, "::1") {
		t.Errorf("client got %q from %v", s, from)
	}
	c.Send(t, at(p, "::1"), "c")
	if d = forwardlab.Receive(t, w.g.UDP, "datagram"); d.Dst != server4 {
		t.Errorf("guest got %+v", d)
	}
	w.refuse(d) // the server ends
	c.Send(t, at(p, "::1"), "d")
	if d = forwardlab.Receive(t, w.g.UDP, "datagram"); d.Dst != server6 {
		t.Errorf("after both have refused the guest got %+v", d)
	}
}

// Without a gateway address of the family there is no address for a loopback client: it must not appear as 127.0.0.1.
func TestPublishedNoAlias(t *testing.T) {
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, func(c *worldConfig) { c.Addresses.Gateway4 = netip.Addr{} })
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4})
	c.Send(t, p.Addr(), "x")
	w.waitDrop(t, DropNoPort, 1)
	forwardlab.ReceiveNothing(t, w.g.UDP, "datagram")
}

// TestPublishedOwnAddress: a client with an address of the guest's, which need not be the one it is forwarded to, appears as the gateway.
func TestPublishedOwnAddress(t *testing.T) {
	w := newWorld(t, nil)
	own := netip.MustParseAddr("203.0.113.9")
	p := &UDPPort{x: w.Path, cfg: UDPListen{Guest4: server4}, next: aliasFirst}
	appears := func() netip.AddrPort {
		w.mu.Lock()
		defer w.mu.Unlock()
		key, ok := w.clientKey(p, server4, netip.AddrPortFrom(own, 5))
		if !ok {
			t.Error("the client has no address inside")
		}
		return key.remote
	}
	if got := appears(); got != netip.AddrPortFrom(own, 5) {
		t.Errorf("before the guest has the address: %v", got)
	}
	w.f.Endpoint(0).SetAddresses(forwarder.Addresses{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6, Guests: []netip.Addr{own}})
	if got := appears(); got != netip.AddrPortFrom(forwardlab.Gateway4, 5) {
		t.Errorf("when the guest has it: %v", got)
	}
}

// An outbound flow of the server to the gateway with the same port still gets its answers.
func TestPublishedAvoidsOutboundFlow(t *testing.T) {
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, func(cfg *worldConfig) {
		cfg.Policy = forwardlab.JudgeFunc(func(_ policy.Proto, _, dst netip.AddrPort) policy.Verdict {
			return policy.Verdict{Action: policy.Allow, Gateway: true, Dst: forwardlab.AP(fmt.Sprintf("127.0.0.1:%d", dst.Port()))}
		})
	})
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4})
	same := netip.AddrPortFrom(forwardlab.Gateway4, c.At.Port())
	w.send(server4, same, "out")
	_, mapped := c.Receive(t)
	c.Send(t, p.Addr(), "in")
	if d := forwardlab.Receive(t, w.g.UDP, "datagram"); d.Src == same || d.Src.Addr() != forwardlab.Gateway4 {
		t.Errorf("the client has the address %v of an outbound flow", d.Src)
	}
	c.Send(t, mapped, "answer")
	if d := forwardlab.Receive(t, w.g.UDP, "answer"); d.Src != same || string(d.Payload) != "answer" {
		t.Errorf("guest got %+v", d)
	}
}

func TestPublishedTimeoutsAndClose(t *testing.T) {
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4})
	q := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: forwardlab.AP("10.0.2.100:81")})
	c.Send(t, p.Addr(), "x")
	forwardlab.Receive(t, w.g.UDP, "datagram")
	w.advance(forwarder.UnrepliedTimeout)
	w.sweep()
	if n := w.Stats().Flows; n != 0 {
		t.Fatalf("%d flows after the timeout", n)
	}
	c.Send(t, p.Addr(), "x")
	d := forwardlab.Receive(t, w.g.UDP, "datagram")
	w.answer(d, "y")
	c.Receive(t)
	w.advance(forwarder.AssuredTimeout - 1)
	w.sweep()
	if n := w.Stats().Flows; n != 1 {
		t.Fatalf("%d flows before the timeout", n)
	}
	c.Send(t, q.Addr(), "z")
	forwardlab.Receive(t, w.g.UDP, "datagram")
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.Stats().Flows; n != 1 {
		t.Errorf("%d flows after Close, want that of the other port", n)
	}
	again := publish(t, w, UDPListen{Addr: p.Addr(), Guest4: server4}) // the port is free at once
	_ = again.Close()
	c.Send(t, q.Addr(), "still there")
	forwardlab.Receive(t, w.g.UDP, "datagram")
}

func TestPublishedCap(t *testing.T) {
	w := newWorld(t, nil)
	w.maxPeers = 3
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4})
	for range 5 {
		c := forwardlab.ListenUDP(t, "127.0.0.1:0")
		c.Send(t, p.Addr(), "x")
		forwardlab.Receive(t, w.g.UDP, "datagram")
	}
	if n := w.Stats().Flows; n != 3 || w.drops(DropFlowEvicted) != 2 {
		t.Errorf("%d flows, %d evicted", n, w.drops(DropFlowEvicted))
	}
}

// A socket that the caller made, for both families at once.
func TestPublishedInherited(t *testing.T) {
	c4, c6 := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "[::1]:0")
	l, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{File: f, Guest4: server4, Guest6: server6})
	if err := f.Close(); err != nil { // ours is a duplicate
		t.Fatal(err)
	}
	for _, c := range []struct {
		h  *forwardlab.Host
		to string
		s  netip.AddrPort
	}{{c4, "127.0.0.5", server4}, {c6, "::1", server6}} {
		c.h.Send(t, at(p, c.to), "hello")
		d := forwardlab.Receive(t, w.g.UDP, "datagram")
		if d.Dst != c.s || d.TTL != 63 {
			t.Errorf("guest got %+v", d)
		}
		w.answer(d, "back")
		if s, from := c.h.Receive(t); s != "back" || from != at(p, c.to) {
			t.Errorf("client got %q from %v", s, from)
		}
	}
}

// The caller may keep a socket that it passed in: once the port is closed, what arrives there must not wake the reader
// goroutine for ever.
func TestPublishedInheritedKeptOpen(t *testing.T) {
	c, l := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0")
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{File: f, Guest4: server4})
	c.Send(t, p.Addr(), "x")
	forwardlab.Receive(t, w.g.UDP, "datagram")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	c.Send(t, l.At, "y")
	if n, err := unix.EpollWait(w.epfd, make([]unix.EpollEvent, 1), 50); n != 0 || err != nil {
		t.Errorf("epoll_wait: %d events, %v", n, err)
	}
	if s, _ := l.Receive(t); s != "y" {
		t.Errorf("the owner of the socket got %q", s)
	}
}

func TestListenUDPErrors(t *testing.T) {
	taken := forwardlab.ListenUDP(t, "127.0.0.1:0")
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	f, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newWorld(t, nil)
	for _, c := range []struct {
		l    UDPListen
		want error
	}{
		{UDPListen{Addr: taken.At, Guest4: server4}, unix.EADDRINUSE},
		{UDPListen{Addr: forwardlab.AP("198.51.100.99:0"), Guest4: server4}, unix.EADDRNOTAVAIL},
		{UDPListen{Addr: forwardlab.AP("127.0.0.1:0")}, unix.EINVAL},
		{UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server6}, unix.EINVAL},
		{UDPListen{Guest4: server4}, unix.EINVAL},
		{UDPListen{File: f, Guest4: server4}, unix.EPROTOTYPE},
	} {
		_, err := w.ListenUDP(c.l)
		var e *Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Op != "listen udp" {
			t.Errorf("%+v: %v, want %v", c.l, err, c.want)
		}
	}
}
