package splicetcp

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"rootlessnet/flow"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

func (w *world) flowWorld(d flow.Direction) *forwardlab.FlowWorld {
	return &forwardlab.FlowWorld{Forwarder: w.f, Budget: w.budget, Datapath: flow.Splice, Direction: d, Proto: flow.TCP, Stop: w.stop}
}

func TestFlowsOutbound(t *testing.T) {
	if forwardlab.EnterNetns(t) == nil {
		return
	}
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		w := newWorldInside(t, forwardlab.Limit, 2)
		fw := w.flowWorld(flow.Outbound)
		var ports []uint16
		open := func(ports []uint16) {
			w.rules.Special = []policy.Special{{Addr: forwardlab.Other4, To: policy.ToLoopback}}
			w.rules.HostLoopback = policy.HostLoopback{Ports: ports}
			w.policy.Set(w.rules)
		}
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			dst := w.listeners[len(ports)]
			ports = append(ports, dst.Port())
			open(ports)
			l := forwardlab.Listen(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dst.Port()).String())
			src := netip.AddrPortFrom(forwardlab.Here4, w.freePort())
			if !w.HandleSYN(&stack.SYN{Flow: stack.Flow{Src: src, Dst: dst}, TTL: guestTTL, Frame: make([]byte, 54)}) {
				t.Fatal("the request was left to the stack path")
			}
			g := forwardlab.Call(t, src, dst)
			return forwardlab.NewTCPFlow(t, flow.Key{Proto: flow.TCP, Src: src, Dst: dst}, l.Addr().(*net.TCPAddr).AddrPort(), g, forwardlab.Accept(t, l))
		}
		fw.Forbid = func(f *forwardlab.Flow) {
			open(slices.DeleteFunc(slices.Clone(ports), func(p uint16) bool { return p == f.Key.Dst.Port() }))
		}
		fw.RemoveSource = func() {
			w.rules.Sources = []netip.Prefix{netip.PrefixFrom(forwardlab.Other4, 32)}
			w.policy.Set(w.rules)
		}
		return fw
	})
}

func TestFlowsInbound(t *testing.T) {
	if forwardlab.EnterNetns(t) == nil {
		return
	}
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		w := newWorldInside(t, forwardlab.Limit, 0)
		fw := w.flowWorld(flow.Inbound)
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			inside := forwardlab.Listen(t, netip.AddrPortFrom(forwardlab.Here4, 0).String())
			server := inside.Addr().(*net.TCPAddr).AddrPort()
			h := forwardlab.Call(t, netip.AddrPort{}, w.publish(server.Port(), newFallback()).Addr())
			g := forwardlab.Accept(t, inside)
			key := flow.Key{Proto: flow.TCP, Src: g.RemoteAddr().(*net.TCPAddr).AddrPort(), Dst: server}
			return forwardlab.NewTCPFlow(t, key, forwardlab.LocalAddr(h), h, g)
		}
		return fw
	})
}
