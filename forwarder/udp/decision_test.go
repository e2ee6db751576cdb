package udp

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

func TestUDPVerdicts(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	judged := 0
	next := policy.Verdict{}
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict { judged++; return next })
	})
	for _, c := range []struct {
		a        policy.Action
		typ, cod uint8
	}{{policy.Refuse, 3, 3}, {policy.Prohibit, 3, 13}, {policy.Unreachable, 3, 1}} {
		next = policy.Verdict{Action: c.a, Reason: policy.Loopback}
		w.send(forwardlab.Guest4, h.At, "x")
		e := forwardlab.Receive(t, w.g.UDPErr, "ICMP error")
		if e.E != (stack.ICMPError{Type: c.typ, Code: c.cod}) {
			t.Errorf("%v: %+v", c.a, e.E)
		}
	}
	next = policy.Verdict{Action: policy.Drop, Reason: policy.Multicast}
	w.send(forwardlab.Guest4, h.At, "x")
	forwardlab.ReceiveNothing(t, w.g.UDPErr, "ICMP error")
	h.ReceiveNothing(t)
	st, refused := w.Stats(), w.f.Refused()
	if refused["loopback"] != 3 || refused["multicast"] != 1 || st.Flows != 0 {
		t.Errorf("refused %v, stats %+v", refused, st)
	}
	judged, next = 0, policy.Verdict{Action: policy.Allow, Dst: h.At}
	for range 5 {
		w.send(forwardlab.Guest4, h.At, "x")
		h.Receive(t)
	}
	if judged != 1 {
		t.Errorf("the policy has judged one flow %d times", judged)
	}
}

// Rules that change while a flow is opened, so that its address is translated to another host: the datagram goes where the new rules send it,
// as it would had they changed a moment later.
func TestUDPDestinationChangesWhileOpening(t *testing.T) {
	before, after := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.2:0")
	var w *world
	judged := 0
	w = newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
			if judged++; judged > 1 {
				return policy.Verdict{Action: policy.Allow, Dst: after.At}
			}
			w.f.Rejudge(0)
			return policy.Verdict{Action: policy.Allow, Dst: before.At}
		})
	})
	w.send(forwardlab.Guest4, forwardlab.AP("192.0.2.1:7"), "x")
	if s, _ := after.Receive(t); s != "x" {
		t.Errorf("received %q", s)
	}
	before.ReceiveNothing(t)
	if n := w.f.Flows.Len(); n != 1 {
		t.Errorf("%d flows", n)
	}
}

func TestUDPGatewayRewrite(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	port := h.At.Port()
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(_ policy.Proto, _, dst netip.AddrPort) policy.Verdict {
			v := policy.Verdict{Action: policy.Allow, Gateway: true, Dst: forwardlab.AP(fmt.Sprintf("127.0.0.1:%d", port))}
			if dst.Addr().Is6() {
				v.Dst, v.Alt = forwardlab.AP(fmt.Sprintf("[::1]:%d", port)), v.Dst
			}
			return v
		})
	})
	for _, c := range []struct {
		guest netip.AddrPort
		gw    netip.Addr
	}{{forwardlab.Guest4, forwardlab.Gateway4}, {forwardlab.Guest6, forwardlab.Gateway6}} {
		remote := netip.AddrPortFrom(c.gw, port)
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: c.guest, Dst: remote}, Payload: []byte("hello"), TTL: 1}) // no hop lies between
		s, from := h.Receive(t)
		if s != "hello" {
			t.Fatalf("host got %q", s)
		}
		h.Send(t, from, "hi")
		d := forwardlab.Receive(t, w.g.UDP, "answer")
		if d.Src != remote || d.Dst != c.guest || string(d.Payload) != "hi" {
			t.Errorf("guest got %+v", d)
		}
	}
	_ = h.Close()
	w.send(forwardlab.Guest4, netip.AddrPortFrom(forwardlab.Gateway4, port), "hello?")
	if e := forwardlab.Receive(t, w.g.UDPErr, "ICMP error"); e.E != stack.PortUnreachable(true) || e.Flow.Dst.Addr() != forwardlab.Gateway4 {
		t.Errorf("got %+v", e)
	}
}

func TestUDPTimeExceededAtGateway(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: []byte("x"), TTL: 1})
	if e := forwardlab.Receive(t, w.g.UDPErr, "ICMP error"); e.E != stack.TimeExceeded(true) {
		t.Errorf("got %+v", e)
	}
	h.ReceiveNothing(t)
	if w.drops(DropTTL) != 1 {
		t.Error("not counted")
	}
}

func TestUDPErrorRateLimit(t *testing.T) {
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
			return policy.Verdict{Action: policy.Refuse, Reason: policy.Loopback}
		})
	})
	for range errorBurst + 100 {
		w.send(forwardlab.Guest4, forwardlab.AP("192.0.2.1:9"), "x")
	}
	if n := len(w.g.UDPErr); n != errorBurst {
		t.Errorf("%d errors, want %d", n, errorBurst)
	}
	w.advance(time.Second / errorRate)
	w.send(forwardlab.Guest4, forwardlab.AP("192.0.2.1:9"), "x")
	if n := len(w.g.UDPErr); n != errorBurst+1 {
		t.Errorf("%d errors a while later", n)
	}
}

type resolver func(q []byte, reply func([]byte))

func (r resolver) ServeTCP(net.Conn)                     {}
func (r resolver) ServeUDP(q []byte, reply func([]byte)) { r(q, reply) }

func TestUDPDNS(t *testing.T) {
	var seen []string
	w := newWorld(t, func(c *worldConfig) {
		c.ResolverAddrs = []netip.Addr{forwardlab.Gateway4, netip.MustParseAddr("10.0.2.3")}
		c.Resolver = resolver(func(q []byte, reply func([]byte)) {
			seen = append(seen, string(q))
			go reply([]byte("answer to " + string(q)))
		})
	})
	for _, dst := range []netip.AddrPort{netip.AddrPortFrom(forwardlab.Gateway4, 53), forwardlab.AP("10.0.2.3:53")} {
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: dst}, Payload: []byte("q1q2q"), GSOSize: 2, TTL: 1})
		for range 3 {
			d := forwardlab.Receive(t, w.g.UDP, "answer")
			if d.Src != dst || d.Dst != forwardlab.Guest4 || !strings.HasPrefix(string(d.Payload), "answer to q") {
				t.Errorf("got %+v", d)
			}
		}
	}
	if strings.Join(seen, ",") != "q1,q2,q,q1,q2,q" || w.Stats().Flows != 0 || w.Stats().DNS != 6 {
		t.Errorf("queries %v, %+v", seen, w.Stats())
	}
}
