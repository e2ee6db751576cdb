package loopback

import (
	"net/netip"
	"testing"

	"rootlessnet/flow"
	"rootlessnet/internal/nettest/forwardlab"
)

// The flows of a Relay are outbound where the servers are the host's, and inbound where they are the guest's.
func TestFlows(t *testing.T) {
	for _, c := range []struct {
		name      string
		direction flow.Direction
		proto     flow.Proto
	}{{"TCP out", flow.Outbound, flow.TCP}, {"TCP in", flow.Inbound, flow.TCP}, {"UDP out", flow.Outbound, flow.UDP}, {"UDP in", flow.Inbound, flow.UDP}} {
		t.Run(c.name, func(t *testing.T) {
			forwardlab.TestFlows(t, func(t testing.TB) *forwardlab.FlowWorld {
				l := forwardlab.Listen(t, "127.0.0.1:0")
				server := forwardlab.AP(l.Addr().String())
				packets := forwardlab.ListenUDP(t, l.Addr().String())
				var pool Pool
				if c.direction == flow.Inbound {
					pool = new(testPool)
				}
				w, tcp, udp := newRelay(t, pool, server.Port())
				fw := &forwardlab.FlowWorld{Forwarder: w.f, Budget: w.budget, Datapath: flow.Loopback, Direction: c.direction, Proto: c.proto, Stop: w.Close}
				// described gives key and peer of a client's flow to the address at.
				described := func(client, at netip.AddrPort) (flow.Key, netip.AddrPort) {
					if c.direction == flow.Inbound {
						return flow.Key{Proto: c.proto, Src: client, Dst: server}, client
					}
					return flow.Key{Proto: c.proto, Src: client, Dst: at}, server
				}
				fw.Open = func(t testing.TB) *forwardlab.Flow {
					if c.proto == flow.TCP {
						h := forwardlab.Call(t, netip.AddrPort{}, tcp)
						key, peer := described(forwardlab.LocalAddr(h), tcp)
						return forwardlab.NewTCPFlow(t, key, peer, h, forwardlab.Accept(t, l))
					}
					h := forwardlab.ListenUDP(t, "127.0.0.1:0")
					f := &forwardlab.Flow{}
					f.Key, f.Peer = described(h.At, udp)
					f.Exchange = func(t testing.TB) {
						t.Helper()
						h.Send(t, udp, forwardlab.Question)
						s, from := packets.Receive(t)
						if s != forwardlab.Question {
							t.Fatalf("the server got %q", s)
						}
						packets.Send(t, from, forwardlab.Reply)
						if s, from := h.Receive(t); s != forwardlab.Reply || from != udp {
							t.Fatalf("the client got %q from %v", s, from)
						}
					}
					f.Exchange(t)
					return f
				}
				return fw
			})
		})
	}
}
