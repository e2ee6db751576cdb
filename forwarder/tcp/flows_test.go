package tcp

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"rootlessnet/flow"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
)

func (w *world) flowWorld(d flow.Direction) *forwardlab.FlowWorld {
	return &forwardlab.FlowWorld{Forwarder: w.f, Budget: w.budget, Datapath: flow.Stack, Direction: d, Proto: flow.TCP, Stop: w.stop}
}

func TestFlowsOutbound(t *testing.T) {
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		w := newWorld(t, nil)
		fw := w.flowWorld(flow.Outbound)
		var ports []uint16
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			l := forwardlab.NewServer(t, "127.0.0.1:0")
			ports = append(ports, l.At.Port())
			g := w.guest.MustDial(l.At)
			key := flow.Key{Proto: flow.TCP, Src: g.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: l.At}
			return forwardlab.NewTCPFlow(t, key, l.Addr().(*net.TCPAddr).AddrPort(), g, l.Accept(t))
		}
		fw.Forbid = func(f *forwardlab.Flow) {
			w.rules.HostLoopback = policy.HostLoopback{Ports: slices.DeleteFunc(ports, func(p uint16) bool { return p == f.Key.Dst.Port() })}
			w.policy.Set(w.rules)
		}
		fw.RemoveSource = func() {
			w.rules.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.2.200/32")}
			w.policy.Set(w.rules)
		}
		return fw
	})
}

func TestFlowsInbound(t *testing.T) {
	forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
		w := newWorld(t, nil)
		fw := w.flowWorld(flow.Inbound)
		port := uint16(servedPort)
		fw.Open = func(t testing.TB) *forwardlab.Flow {
			port++
			inside := netip.AddrPortFrom(forwardlab.Guest4.Addr(), port)
			l := w.guest.Listen(inside)
			h := forwardlab.Call(t, netip.AddrPort{}, w.publishPort(forwardlab.Listen(t, "127.0.0.1:0"), port).Addr())
			g, client := forwardlab.Answer(t, l)
			return forwardlab.NewTCPFlow(t, flow.Key{Proto: flow.TCP, Src: client, Dst: inside}, forwardlab.LocalAddr(h), h, g)
		}
		return fw
	})
}
