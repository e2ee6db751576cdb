package udp

import (
	"net/netip"
	"testing"
	"time"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// refuse is the guest's answer to d where nothing listens.
func (w *world) refuse(d stack.Datagram) {
	w.HandleUDPError(stack.Flow{Src: d.Src, Dst: d.Dst}, stack.PortUnreachable(d.Dst.Addr().Is4()))
}

// knock sends a datagram of a client and returns what the guest gets of it.
func (w *world) knock(t *testing.T, c *forwardlab.Host, to netip.AddrPort, text string) stack.Datagram {
	t.Helper()
	c.Send(t, to, text)
	d := forwardlab.Receive(t, w.g.UDP, "datagram "+text)
	if string(d.Payload) != text {
		t.Errorf("guest got %q, want %q", d.Payload, text)
	}
	return d
}

// A client sends ten datagrams a second before its server is up. As soon as the server listens in both families, the client is
// served in its own.
func TestClientBeforeItsServer(t *testing.T) {
	c := forwardlab.ListenUDP(t, "[::1]:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4, Guest6: server6})
	others := 0
	for range 300 {
		d := w.knock(t, c, at(p, "::1"), "early")
		if d.Dst != server6 {
			t.Fatalf("guest got %+v; the server may listen in the client's family now", d)
		}
		w.refuse(d)
		select { // the guest refuses before the client's next datagram
		case d = <-w.g.UDP:
			others++
			if d.Dst != server4 || string(d.Payload) != "early" {
				t.Fatalf("guest got %+v", d)
			}
			w.refuse(d)
		default:
		}
		w.advance(100 * time.Millisecond)
	}
	if others < 10 || others > 31 {
		t.Errorf("the other family was tried %d times in 30 s, want about once a second", others)
	}
	d := w.knock(t, c, at(p, "::1"), "late")
	if d.Dst != server6 {
		t.Fatalf("guest got %+v", d)
	}
	w.answer(d, "back")
	if s, _ := c.Receive(t); s != "back" {
		t.Errorf("client got %q", s)
	}
	// The server starts again: for as long as it has answered lately it is the one of the client's family.
	w.refuse(d)
	forwardlab.ReceiveNothing(t, w.g.UDP, "datagram")
	if d := w.knock(t, c, at(p, "::1"), "again"); d.Dst != server6 {
		t.Errorf("guest got %+v", d)
	}
}

// A server of the other family only is tried in the client's family now and then, without a loss. When it begins to listen there,
// the client comes back.
func TestClientTriesItsOwnFamily(t *testing.T) {
	c := forwardlab.ListenUDP(t, "[::1]:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4, Guest6: server6})
	w.refuse(w.knock(t, c, at(p, "::1"), "first"))
	first := forwardlab.Receive(t, w.g.UDP, "the same over IPv4")
	w.answer(first, "back")
	c.Receive(t)
	tries := 0
	for range 600 {
		d := w.knock(t, c, at(p, "::1"), "x")
		if d.Dst == server6 {
			tries++
			w.refuse(d)
			d = forwardlab.Receive(t, w.g.UDP, "the same over IPv4")
		}
		if d.Dst != server4 || d.Src != first.Src || string(d.Payload) != "x" {
			t.Fatalf("guest got %+v, want it from %v", d, first.Src)
		}
		w.advance(100 * time.Millisecond)
	}
	if tries < 3 || tries > 8 {
		t.Errorf("the client's own family was tried %d times in 60 s", tries)
	}
	w.advance(ownLast)
	if d := w.knock(t, c, at(p, "::1"), "y"); d.Dst != server6 {
		t.Fatalf("guest got %+v", d)
	}
	if d := w.knock(t, c, at(p, "::1"), "z"); d.Dst != server4 { // until it is known that the first was not refused
		t.Fatalf("guest got %+v", d)
	}
	w.advance(refusalTime)
	for range 3 {
		if d := w.knock(t, c, at(p, "::1"), "own"); d.Dst != server6 {
			t.Fatalf("guest got %+v", d)
		}
	}
}

// An answer from the client's own family ends the forwarding to the other at once.
func TestClientAnsweredByItsOwnFamily(t *testing.T) {
	c := forwardlab.ListenUDP(t, "[::1]:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4, Guest6: server6})
	w.refuse(w.knock(t, c, at(p, "::1"), "a"))
	forwardlab.Receive(t, w.g.UDP, "the same over IPv4")
	w.advance(ownFirst)
	d := w.knock(t, c, at(p, "::1"), "b")
	if d.Dst != server6 {
		t.Fatalf("guest got %+v", d)
	}
	w.answer(d, "back")
	if d := w.knock(t, c, at(p, "::1"), "c"); d.Dst != server6 {
		t.Errorf("guest got %+v", d)
	}
}

// A flow that the guest has never answered ends although the client goes on sending; one that it has answered does not.
func TestUnansweredClientExpires(t *testing.T) {
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4})
	id := func() flow.ID {
		list := w.f.Flows.List()
		if len(list) != 1 {
			t.Fatalf("flows %+v", list)
		}
		return list[0].ID
	}
	w.knock(t, c, p.Addr(), "x")
	first := id()
	w.advance(forwarder.UnrepliedTimeout - 1)
	w.knock(t, c, p.Addr(), "x")
	if id() != first {
		t.Error("a new flow before the time")
	}
	w.advance(1)
	d := w.knock(t, c, p.Addr(), "x")
	second := id()
	if second == first {
		t.Error("the flow goes on")
	}
	w.answer(d, "y")
	w.advance(forwarder.UnrepliedTimeout)
	w.knock(t, c, p.Addr(), "x")
	if id() != second {
		t.Error("a flow that was answered has ended")
	}
}

// With several addresses of a family, a client is forwarded to the one that it asked, and gets what the server inside answers
// from any of them, from the address that it asked.
func TestClientOfSeveralAddresses(t *testing.T) {
	a, b, elsewhere := netip.MustParseAddr("127.0.0.8"), netip.MustParseAddr("127.0.0.9"), "127.0.0.7"
	w := newWorld(t, func(c *worldConfig) { c.Addresses.Guests = []netip.Addr{a, b} })
	to := func(g netip.Addr) netip.AddrPort { return netip.AddrPortFrom(g, 80) }
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("0.0.0.0:0"), Guest4: to(a), Guests: []netip.Addr{a, b}})
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	for _, ask := range []struct {
		host string
		want netip.Addr
	}{{a.String(), a}, {b.String(), b}, {elsewhere, a}, {b.String(), b}} {
		d := w.knock(t, c, at(p, ask.host), "x")
		if d.Dst != to(ask.want) {
			t.Errorf("asked %s: guest got %+v", ask.host, d)
		}
		for _, from := range []netip.Addr{a, b} {
			w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: to(from), Dst: d.Src}, Payload: []byte("y"), TTL: 64})
			// Both flows are the same client's as far as an answer from the other address shows.
			if _, answer := c.Receive(t); from == ask.want && answer != at(p, ask.host) {
				t.Errorf("asked %s, answered from %v as %v", ask.host, from, answer)
			}
		}
	}
	p.SetGuests(a, netip.Addr{}, []netip.Addr{a})
	w.f.Endpoint(0).SetAddresses(forwarder.Addresses{Gateway4: forwardlab.Gateway4, Guests: []netip.Addr{a}})
	if d := w.knock(t, c, at(p, b.String()), "x"); d.Dst != to(a) {
		t.Errorf("an address that is gone: guest got %+v", d)
	}
	if n := w.Stats().Flows; n != 1 {
		t.Errorf("%d flows", n)
	}
}

// The only flow of a client takes answers from another address of the guest, and keeps an outbound flow from taking them.
func TestAnswerFromAnotherAddress(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("10.0.2.101")
	w := newWorld(t, func(c *worldConfig) { c.Addresses.Guests = []netip.Addr{a, b} })
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server4, Guests: []netip.Addr{a, b}})
	d := w.knock(t, c, p.Addr(), "x")
	for range 2 {
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: netip.AddrPortFrom(b, server4.Port()), Dst: d.Src}, Payload: []byte("y"), TTL: 64})
		if s, from := c.Receive(t); s != "y" || from != p.Addr() {
			t.Errorf("client got %q from %v", s, from)
		}
	}
	if st := w.Stats(); st.Flows != 1 || st.Sockets != 0 {
		t.Errorf("stats %+v", st)
	}
}
