package udp

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
)

// Every port of an address that the guest has sent to may answer, as a TFTP server does; no port of another may. The guest's
// answer leaves by the same port of the host.
func TestAddressDependentFilter(t *testing.T) {
	server, other, stranger := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.2:0")
	w := newWorld(t, nil)
	w.send(forwardlab.Guest4, server.At, "question")
	_, mapped := server.Receive(t)
	for range 2 {
		other.Send(t, mapped, "data")
		if d := forwardlab.Receive(t, w.g.UDP, "data from another port"); d.Src != other.At || d.Dst != forwardlab.Guest4 || d.TTL != 63 {
			t.Errorf("guest got %+v", d)
		}
	}
	if st := w.Stats(); st.Flows != 1 { // what comes in opens no flow
		t.Errorf("stats %+v", st)
	}
	w.send(forwardlab.Guest4, other.At, "acknowledged")
	if s, from := other.Receive(t); s != "acknowledged" || from != mapped {
		t.Errorf("the other port got %q from %v, want it from %v", s, from, mapped)
	}
	stranger.Send(t, netip.AddrPortFrom(mapped.Addr(), mapped.Port()), "unsolicited")
	w.waitDrop(t, DropUnsolicited, 1)
	forwardlab.ReceiveNothing(t, w.g.UDP, "datagram")
}

// What other ports send keeps the mapping open, and its end closes it to all of them.
func TestFilterEndsWithTheFlow(t *testing.T) {
	server, other := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	for _, port := range []uint16{1, 2, 3} { // a chain of flows to one address, taken out from the middle, the end and the start
		w.send(forwardlab.Guest4, netip.AddrPortFrom(server.At.Addr(), port), "x")
	}
	w.send(forwardlab.Guest4, server.At, "question")
	_, mapped := server.Receive(t)
	for _, port := range []uint16{2, 1, 3} {
		w.forget(flowKey{0, protoUDP, forwardlab.Guest4, netip.AddrPortFrom(server.At.Addr(), port)})
		other.Send(t, mapped, "data")
		forwardlab.Receive(t, w.g.UDP, "data from another port")
	}
	for range 20 {
		w.advance(20 * time.Second)
		other.Send(t, mapped, "data")
		forwardlab.Receive(t, w.g.UDP, "data from another port")
		w.sweep()
	}
	w.mu.Lock()
	spoken := len(w.spoken)
	w.mu.Unlock()
	if spoken != 1 {
		t.Errorf("%d addresses were spoken to", spoken)
	}
	w.advance(time.Hour)
	w.sweep()
	w.mu.Lock()
	spoken = len(w.spoken)
	w.mu.Unlock()
	if st := w.Stats(); st.Flows != 0 || spoken != 0 {
		t.Errorf("stats %+v, %d addresses", st, spoken)
	}
}

// The host's loopback stays closed: a service on a port that is open to the guest lets no other port in.
func TestFilterKeepsLoopbackClosed(t *testing.T) {
	open, closed := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0")
	gateway := netip.AddrPortFrom(forwardlab.Gateway4, open.At.Port())
	w := newWorld(t, func(c *worldConfig) {
		c.FullCone = true
		c.Policy = policy.New(policy.Config{Gateway4: forwardlab.Gateway4, Subnet4: netip.MustParsePrefix("10.0.2.0/24"),
			HostLoopback: policy.HostLoopback{Ports: []uint16{open.At.Port()}}})
	})
	w.send(forwardlab.Guest4, gateway, "question")
	_, mapped := open.Receive(t)
	closed.Send(t, mapped, "unsolicited")
	w.waitDrop(t, DropUnsolicited, 1)
	open.Send(t, mapped, "answer")
	if d := forwardlab.Receive(t, w.g.UDP, "answer"); d.Src != gateway {
		t.Errorf("guest got %+v", d)
	}
	forwardlab.ReceiveNothing(t, w.g.UDP, "datagram")
}

// With full-cone filtering every remote may send to a source of the guest that has sent, but for the guest's own addresses and what
// is closed to the guest.
func TestFullCone(t *testing.T) {
	n := forwardlab.EnterNetns(t)
	if n == nil {
		return
	}
	own := forwardlab.Other4
	listen := func(a netip.Addr) *forwardlab.Host { return forwardlab.ListenUDP(t, netip.AddrPortFrom(a, 0).String()) }
	server, same, closed := listen(forwardlab.Here4), listen(own), forwardlab.ListenUDP(t, "127.0.0.4:0")
	stranger := n.ListenUDP(t, netip.AddrPortFrom(forwardlab.Router4, 0).String())
	w := newWorld(t, func(c *worldConfig) {
		c.FullCone = true
		c.Addresses.Guests = []netip.Addr{own}
		c.Policy = forwardlab.JudgeFunc(func(_ policy.Proto, _, dst netip.AddrPort) policy.Verdict {
			if dst.Addr() == closed.At.Addr() {
				return policy.Verdict{Action: policy.Drop, Reason: policy.Loopback}
			}
			return policy.Verdict{Action: policy.Allow, Dst: dst}
		})
	})
	w.send(forwardlab.Guest4, server.At, "question")
	_, mapped := server.Receive(t)
	stranger.Send(t, mapped, "hello")
	if d := forwardlab.Receive(t, w.g.UDP, "datagram of a stranger"); d.Src != stranger.At || d.Dst != forwardlab.Guest4 {
		t.Errorf("guest got %+v", d)
	}
	same.Send(t, mapped, "x")
	closed.Send(t, mapped, "x")
	w.waitDrop(t, DropUnsolicited, 2)
	forwardlab.ReceiveNothing(t, w.g.UDP, "datagram")
	if refused := w.f.Refused(); len(refused) != 0 {
		t.Errorf("counted as refused to the guest: %v", refused)
	}
}

// A flow to a service of the host that listens in one family finds it, also when the service is started late or again in the
// other family.
func TestLateServiceOfTheHost(t *testing.T) {
	probe := forwardlab.ListenUDP(t, "127.0.0.1:0")
	port := probe.At.Port()
	_ = probe.Close()
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
			return policy.Verdict{Action: policy.Allow, Gateway: true, Dst: forwardlab.AP(fmt.Sprintf("127.0.0.1:%d", port)),
				Alt: forwardlab.AP(fmt.Sprintf("[::1]:%d", port))}
		})
	})
	to := netip.AddrPortFrom(forwardlab.Gateway4, port)
	for range 5 { // both refuse: the guest hears of each
		w.send(forwardlab.Guest4, to, "early")
		if e := forwardlab.Receive(t, w.g.UDPErr, "ICMP error"); e.Flow.Dst != to {
			t.Errorf("guest got %+v", e)
		}
		w.advance(300 * time.Millisecond)
	}
	for _, listen := range []string{"127.0.0.1", "[::1]"} {
		h := forwardlab.ListenUDP(t, fmt.Sprintf("%s:%d", listen, port))
		w.advance(refusalPause)
		w.send(forwardlab.Guest4, to, "late")
		s, from := h.Receive(t)
		if s != "late" {
			t.Fatalf("%s got %q", listen, s)
		}
		_ = h.Close()
		if listen == "127.0.0.1" { // never answered: it goes on to try
			continue
		}
		h = forwardlab.ListenUDP(t, fmt.Sprintf("%s:%d", listen, port))
		h.Send(t, from, "answer")
		if d := forwardlab.Receive(t, w.g.UDP, "answer"); d.Src != to {
			t.Errorf("guest got %+v", d)
		}
	}
}
