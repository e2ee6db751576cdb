package udp

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// ICMP errors of the network and errors of the host's kernel reach the guest with type, code, MTU and sender.
func TestUDPErrorsOfTheNetwork(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	w := newWorld(t, nil)
	none4, none6 := netip.Addr{}, netip.Addr{}
	closed4, closed6 := netip.AddrPortFrom(forwardlab.Router4, 9), netip.AddrPortFrom(forwardlab.Router6, 9)
	for _, c := range []struct {
		name string
		dst  netip.AddrPort
		ttl  uint8
		size int
		want stack.ICMPError
	}{
		{"port", closed4, 64, 5, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 3}},
		{"port6", closed6, 64, 5, stack.ICMPError{From: forwardlab.Router6, Type: 1, Code: 4}},
		{"traceroute", forwardlab.AP("203.0.113.9:33434"), 2, 5, stack.ICMPError{From: forwardlab.Router4, Type: 11}},
		{"traceroute6", forwardlab.AP("[2001:db8:203::9]:33434"), 2, 5, stack.ICMPError{From: forwardlab.Router6, Type: 3}},
		{"host", forwardlab.AP("198.18.1.1:7"), 64, 5, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 1}},
		{"prohibited", forwardlab.AP("198.18.2.1:7"), 64, 5, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 13}},
		{"prohibited6", forwardlab.AP("[2001:db8:f0::1]:7"), 64, 5, stack.ICMPError{From: forwardlab.Router6, Type: 1, Code: 1}},
		{"mtu", forwardlab.AP("203.0.113.9:7"), 64, 1400, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 4, MTU: forwardlab.NarrowMTU}},
		{"mtu recorded", forwardlab.AP("203.0.113.9:8"), 64, 1400, stack.ICMPError{From: none4, Type: 3, Code: 4, MTU: forwardlab.NarrowMTU}},
		{"mtu6", forwardlab.AP("[2001:db8:203::9]:7"), 64, 1400, stack.ICMPError{From: forwardlab.Router6, Type: 2, MTU: forwardlab.NarrowMTU}},
		{"mtu6 recorded", forwardlab.AP("[2001:db8:203::9]:8"), 64, 1400, stack.ICMPError{From: none6, Type: 2, MTU: forwardlab.NarrowMTU}},
		{"no route", forwardlab.AP("100.64.0.1:7"), 64, 5, stack.ICMPError{Type: 3, Code: 0}},
		{"no route6", forwardlab.AP("[2001:db9::1]:7"), 64, 5, stack.ICMPError{Type: 1, Code: 0}},
		{"denied here", forwardlab.AP("192.0.2.1:7"), 64, 5, stack.ICMPError{Type: 3, Code: 13}},
		{"unreachable here", forwardlab.AP("192.88.99.1:7"), 64, 5, stack.ICMPError{Type: 3, Code: 1}},
	} {
		src := forwardlab.Guest4
		if c.dst.Addr().Is6() {
			src = forwardlab.Guest6
		}
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: src, Dst: c.dst}, Payload: []byte(forwardlab.Repeat(c.size)), TTL: c.ttl, DF: true})
		e := forwardlab.Receive(t, w.g.UDPErr, "error: "+c.name)
		if e.E != c.want || e.Flow != (stack.Flow{Src: src, Dst: c.dst}) || !strings.HasPrefix(forwardlab.Repeat(c.size), string(e.Payload)) {
			t.Errorf("%s: got %v %+v, want %+v", c.name, e.Flow, e.E, c.want)
		}
	}

	// Without DF the host's kernel fragments.
	h := n.ListenUDP(t, netip.AddrPortFrom(forwardlab.Router4, 0).String())
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: []byte(forwardlab.Repeat(4000)), TTL: 64})
	if s, _ := h.Receive(t); len(s) != 4000 {
		t.Errorf("host got %d bytes", len(s))
	}
	// A GSO batch of datagrams too large for the path gives one error, and one without DF arrives where it may be fragmented.
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: forwardlab.AP("203.0.113.9:9")}, Payload: []byte(forwardlab.Repeat(4200)), TTL: 64, GSOSize: 1400, DF: true})
	if e := forwardlab.Receive(t, w.g.UDPErr, "error"); e.E != (stack.ICMPError{Type: 3, Code: 4, MTU: forwardlab.NarrowMTU}) || len(e.Payload) != 1400 {
		t.Errorf("batch: %+v, %d bytes", e.E, len(e.Payload))
	}
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: []byte(forwardlab.Repeat(6000)), TTL: 64, GSOSize: 2000})
	for range 3 {
		if s, _ := h.Receive(t); len(s) != 2000 {
			t.Errorf("host got %d bytes", len(s))
		}
	}
	forwardlab.ReceiveNothing(t, w.g.UDPErr, "error")
}

// A client on another machine is seen with its own address, and answered from the address it used.
func TestPublishedRemoteClients(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	a4, a6 := n.ListenUDP(t, netip.AddrPortFrom(forwardlab.Router4, 0).String()), n.ListenUDP(t, netip.AddrPortFrom(forwardlab.Router6, 0).String())
	w := newWorld(t, nil)
	p4 := publish(t, w, UDPListen{Addr: forwardlab.AP("0.0.0.0:0"), Guest4: server4, Guest6: server6})
	p6 := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest4: server4, Guest6: server6})
	// The server has an outbound flow to the client: its answers must leave by the published port nevertheless.
	w.send(server4, a4.At, "early")
	a4.Receive(t)
	for _, c := range []struct {
		h  *forwardlab.Host
		to netip.AddrPort
		s  netip.AddrPort
	}{
		{a4, at(p4, forwardlab.Here4.String()), server4}, {a4, at(p4, forwardlab.Other4.String()), server4},
		{a6, at(p6, forwardlab.Here6.String()), server6}, {a6, at(p6, forwardlab.Other6.String()), server6},
	} {
		c.h.Send(t, c.to, "hello")
		d := forwardlab.Receive(t, w.g.UDP, "datagram")
		if d.Src != c.h.At || d.Dst != c.s || d.TTL != 63 {
			t.Errorf("guest got %+v", d)
		}
		w.answer(d, "back")
		if s, from := c.h.Receive(t); s != "back" || from != c.to {
			t.Errorf("client got %q from %v, want it from %v", s, from, c.to)
		}
	}
	// A client that has closed its socket: the server gets the ICMP error, as from its own kernel.
	d := stack.Datagram{Flow: stack.Flow{Src: a4.At, Dst: server4}}
	_ = a4.Close()
	w.answer(d, "too late")
	if e := forwardlab.Receive(t, w.g.UDPErr, "error"); e.E != (stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 3}) || e.Flow.Src != server4 {
		t.Errorf("got %+v", e)
	}
}

// A link-local address of a client is not valid on the guest's link: the client appears as the gateway and is answered on its link.
func TestPublishedLinkLocalClient(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	ll := forwardlab.LinkLocal(t, "lan0")
	var peer netip.Addr
	n.InRouter(t, func() error { peer = forwardlab.LinkLocal(t, "lan0"); return nil })
	h := n.ListenUDP(t, fmt.Sprintf("[%v%%lan0]:0", peer))
	w := newWorld(t, nil)
	p := publish(t, w, UDPListen{Addr: forwardlab.AP("[::]:0"), Guest6: server6})
	to := netip.AddrPortFrom(ll.WithZone("lan0"), p.Addr().Port())
	n.InRouter(t, func() error { h.Send(t, to, "hello"); return nil })
	d := forwardlab.Receive(t, w.g.UDP, "datagram")
	if d.Src != netip.AddrPortFrom(forwardlab.Gateway6, h.At.Port()) || d.Dst != server6 {
		t.Errorf("guest got %+v", d)
	}
	w.answer(d, "back")
	if s, from := h.Receive(t); s != "back" || from.Addr().WithZone("") != ll {
		t.Errorf("client got %q from %v", s, from)
	}
}

func TestEcho(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	n.SettleND(t)
	if err := forwardlab.Sysctl("ipv4/ping_group_range", "0 0"); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil)
	for _, dst := range []netip.Addr{forwardlab.Router4, forwardlab.Router6} {
		src := forwardlab.Guest4.Addr()
		if dst.Is6() {
			src = forwardlab.Guest6.Addr()
		}
		for i, size := range []int{0, 56, 1400, 9000} {
			req := stack.Echo{Src: src, Dst: dst, ID: 0x1234, Seq: uint16(i), Payload: []byte(forwardlab.Repeat(size)), TTL: 64, TOS: 0x28}
			w.HandleEcho(&req)
			e := forwardlab.Receive(t, w.g.Echo, "echo reply")
			if e.Src != dst || e.Dst != src || e.ID != 0x1234 || e.Seq != uint16(i) || len(e.Payload) != size || e.TTL != 63 {
				t.Errorf("reply %+v", e)
			}
		}
		// Two programs of the guest, with one identifier each, do not get each other's replies.
		w.HandleEcho(&stack.Echo{Src: src, Dst: dst, ID: 7, Seq: 9, TTL: 64})
		if e := forwardlab.Receive(t, w.g.Echo, "echo reply"); e.ID != 7 || e.Seq != 9 {
			t.Errorf("reply %+v", e)
		}
	}
	for _, c := range []struct {
		dst  string
		ttl  uint8
		size int
		want stack.ICMPError
	}{
		{"203.0.113.9", 1, 8, stack.ICMPError{Type: 11}},
		{"203.0.113.9", 2, 8, stack.ICMPError{From: forwardlab.Router4, Type: 11}},
		{"2001:db8:203::9", 1, 8, stack.ICMPError{Type: 3}},
		{"2001:db8:203::9", 2, 8, stack.ICMPError{From: forwardlab.Router6, Type: 3}},
		{"198.18.1.1", 64, 8, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 1}},
		{"198.18.2.1", 64, 8, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 13}},
		{"2001:db8:f0::1", 64, 8, stack.ICMPError{From: forwardlab.Router6, Type: 1, Code: 1}},
		{"203.0.113.9", 64, 1400, stack.ICMPError{From: forwardlab.Router4, Type: 3, Code: 4, MTU: forwardlab.NarrowMTU}},
		{"198.51.100.2", 64, 2000, stack.ICMPError{Type: 3, Code: 4, MTU: forwardlab.WideMTU}},
		{"2001:db8:203::9", 64, 1400, stack.ICMPError{From: forwardlab.Router6, Type: 2, MTU: forwardlab.NarrowMTU}},
		{"100.64.0.1", 64, 8, stack.ICMPError{Type: 3, Code: 0}},
	} {
		dst := netip.MustParseAddr(c.dst)
		src := forwardlab.Guest4.Addr()
		if dst.Is6() {
			src = forwardlab.Guest6.Addr()
		}
		w.HandleEcho(&stack.Echo{Src: src, Dst: dst, ID: 77, Seq: 5, Payload: []byte(forwardlab.Repeat(c.size)), TTL: c.ttl, DF: true})
		e := forwardlab.Receive(t, w.g.EchoErr, "error about "+c.dst)
		if e.E != c.want || e.Req.Src != src || e.Req.Dst != dst || e.Req.ID != 77 || e.Req.Seq != 5 {
			t.Errorf("%s ttl %d: got %+v about %+v, want %+v", c.dst, c.ttl, e.E, e.Req, c.want)
		}
	}
	forwardlab.ReceiveNothing(t, w.g.Echo, "echo reply")
	w.advance(forwarder.EchoTimeout)
	w.sweep()
	if st := w.Stats(); st.Flows != 0 || st.Sockets != 0 {
		t.Errorf("after the timeout: %+v", st)
	}
}

// Without permission no reply is forged, the guest gets an ICMP error that says prohibited, and the log has the remedy, once.
func TestEchoWithoutPermission(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	// A fresh network namespace allows no ping sockets: the range of groups is empty.
	var log bytes.Buffer
	w := newWorld(t, func(c *worldConfig) { c.log = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 2 {
		w.HandleEcho(&stack.Echo{Src: forwardlab.Guest4.Addr(), Dst: forwardlab.Router4, ID: 1, Seq: 2, Payload: []byte("x"), TTL: 64})
		if e := forwardlab.Receive(t, w.g.EchoErr, "error"); e.E != (stack.ICMPError{Type: 3, Code: 13}) || e.Req.Seq != 2 {
			t.Errorf("got %+v", e)
		}
		w.HandleEcho(&stack.Echo{Src: forwardlab.Guest6.Addr(), Dst: forwardlab.Router6, ID: 1, Seq: 2, TTL: 64})
		if e := forwardlab.Receive(t, w.g.EchoErr, "error"); e.E != (stack.ICMPError{Type: 1, Code: 1}) {
			t.Errorf("got %+v", e)
		}
	}
	forwardlab.ReceiveNothing(t, w.g.Echo, "echo reply")
	if w.drops(DropPingDenied) != 4 || strings.Count(log.String(), "ping_group_range") != 1 {
		t.Errorf("counted %d, log %q", w.drops(DropPingDenied), log.String())
	}
}
