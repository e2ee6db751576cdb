package udp

import (
	"net/netip"
	"slices"
	"testing"

	"rootlessnet/flow"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// newFlowWorld is a world under policy.Live, as TestFlows needs one.
func newFlowWorld(t testing.TB, proto flow.Proto, d flow.Direction, rules policy.Config) (*world, *policy.Live, *forwardlab.FlowWorld) {
	t.Helper()
	rules.Gateway4, rules.Subnet4 = forwardlab.Gateway4, forwardlab.Subnet4
	live := policy.NewLive(rules)
	w := newWorld(t, func(c *worldConfig) { c.Policy = live })
	fw := &forwardlab.FlowWorld{Forwarder: w.f, Budget: w.budget, Datapath: flow.Datagram, Direction: d, Proto: proto,
		Stop: func() { _ = w.Close() }}
	if d == flow.Outbound {
		fw.RemoveSource = func() {
			rules.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.2.200/32")}
			live.Set(rules)
		}
	}
	return w, live, fw
}

func TestFlowsOutbound(t *testing.T) {
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		rules := policy.Config{Gateway4: forwardlab.Gateway4, Subnet4: forwardlab.Subnet4, HostLoopback: policy.HostLoopback{All: true}}
		w, live, fw := newFlowWorld(t, flow.UDP, flow.Outbound, rules)
		var ports []uint16
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			h := forwardlab.ListenUDP(t, "127.0.0.1:0")
			ports = append(ports, h.At.Port())
			f := &forwardlab.Flow{Peer: h.At, Key: flow.Key{Proto: flow.UDP, Src: netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(5000+len(ports))),
				Dst: netip.AddrPortFrom(forwardlab.Gateway4, h.At.Port())}}
			f.Exchange = func(t testing.TB) {
				t.Helper()
				w.send(f.Key.Src, f.Key.Dst, forwardlab.Question)
				s, from := h.Receive(t)
				if s != forwardlab.Question {
					t.Fatalf("the host got %q", s)
				}
				h.Send(t, from, forwardlab.Reply)
				if d := forwardlab.Receive(t, w.g.UDP, "reply"); string(d.Payload) != forwardlab.Reply || d.Dst != f.Key.Src || d.Src != f.Key.Dst {
					t.Fatalf("the guest got %+v", d)
				}
			}
			f.Exchange(t)
			return f
		}
		fw.Forbid = func(f *forwardlab.Flow) {
			rules.HostLoopback = policy.HostLoopback{Ports: slices.DeleteFunc(slices.Clone(ports), func(p uint16) bool { return p == f.Key.Dst.Port() })}
			live.Set(rules)
		}
		return fw
	})
}

func TestFlowsInbound(t *testing.T) {
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		w, _, fw := newFlowWorld(t, flow.UDP, flow.Inbound, policy.Config{})
		server := server4
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			h := forwardlab.ListenUDP(t, "127.0.0.1:0")
			server = netip.AddrPortFrom(server.Addr(), server.Port()+1)
			p := publish(t, w, UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: server})
			f := &forwardlab.Flow{Peer: h.At, Key: flow.Key{Proto: flow.UDP, Src: netip.AddrPortFrom(forwardlab.Gateway4, h.At.Port()), Dst: server}}
			f.Exchange = func(t testing.TB) {
				t.Helper()
				h.Send(t, p.Addr(), forwardlab.Question)
				d := forwardlab.Receive(t, w.g.UDP, "question")
				if string(d.Payload) != forwardlab.Question || d.Src != f.Key.Src || d.Dst != f.Key.Dst {
					t.Fatalf("the guest got %+v", d)
				}
				w.answer(d, forwardlab.Reply)
				if s, from := h.Receive(t); s != forwardlab.Reply || from != p.Addr() {
					t.Fatalf("the client got %q from %v", s, from)
				}
			}
			f.Exchange(t)
			return f
		}
		return fw
	})
}

func TestFlowsEcho(t *testing.T) {
	if forwardlab.EnterNetns(t) == nil {
		return
	}
	if err := forwardlab.Sysctl("ipv4/ping_group_range", "0 0"); err != nil {
		t.Fatal(err)
	}
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		rules := policy.Config{Gateway4: forwardlab.Gateway4, Subnet4: forwardlab.Subnet4}
		targets := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
		hosts := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}
		for i := range targets {
			rules.Special = append(rules.Special, policy.Special{Addr: targets[i], To: policy.ToHost, Host: hosts[i]})
		}
		w, live, fw := newFlowWorld(t, flow.ICMP, flow.Outbound, rules)
		opened := 0
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			target, peer, id, seq := targets[opened], hosts[opened], uint16(7000+opened), uint16(0)
			opened++
			src := forwardlab.Guest4.Addr()
			f := &forwardlab.Flow{Peer: netip.AddrPortFrom(peer, 0),
				Key: flow.Key{Proto: flow.ICMP, Src: netip.AddrPortFrom(src, id), Dst: netip.AddrPortFrom(target, 0)}}
			f.Exchange = func(t testing.TB) {
				t.Helper()
				seq++
				w.HandleEcho(&stack.Echo{Src: src, Dst: target, ID: id, Seq: seq, Payload: []byte(forwardlab.Question), TTL: 64})
				e := forwardlab.Receive(t, w.g.Echo, "echo reply")
				if string(e.Payload) != forwardlab.Question || e.ID != id || e.Seq != seq || e.Src != target || e.Dst != src {
					t.Fatalf("the guest got %+v", e)
				}
			}
			f.Exchange(t)
			return f
		}
		fw.Forbid = func(f *forwardlab.Flow) {
			rules.Special = slices.Clone(rules.Special)
			for i := range rules.Special {
				if rules.Special[i].Addr == f.Key.Dst.Addr() {
					rules.Special[i].To = policy.ToRefuse
				}
			}
			live.Set(rules)
		}
		return fw
	})
}
