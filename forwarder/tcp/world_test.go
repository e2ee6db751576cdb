package tcp

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// world is a stack path with the gateway's stack, and a guest that is a second netstack.
type world struct {
	*Path
	t      testing.TB
	budget *fdbudget.Budget
	policy *policy.Live
	rules  policy.Config // those in force
	wire   *forwardlab.Wire
	gw     *stack.Stack
	guest  *forwardlab.Guest
	stop   func() // ends everything; it may be called more than once
}

// worldConfig is what a test may change.
type worldConfig struct {
	forwarder.EndpointConfig
	rules policy.Config
	limit int64 // of descriptors
}

// handler passes the stack's TCP to the Path. There is no other protocol.
type handler struct {
	stack.Handler
	p *Path
}

func (h handler) HandleTCP(req *stack.TCPRequest) { h.p.HandleTCP(req) }

// newWorld has every port of the host's loopback open on the gateway. It checks at the end that nothing is left behind: no
// goroutine, no descriptor, and nothing taken from the budget.
func newWorld(t testing.TB, change func(*worldConfig)) *world {
	t.Helper()
	nettest.CheckLeaks(t)
	gw4, gw6 := forwardlab.Gateway4, forwardlab.Gateway6
	cfg := worldConfig{limit: forwardlab.Limit, rules: policy.Config{Gateway4: gw4, Gateway6: gw6, Subnet4: forwardlab.Subnet4, Subnet6: forwardlab.Subnet6,
		HostLoopback: policy.HostLoopback{All: true}}}
	cfg.Subnets = []netip.Prefix{forwardlab.Subnet4, forwardlab.Subnet6}
	cfg.Addresses = forwarder.Addresses{Gateway4: gw4, Gateway6: gw6, Guest4: forwardlab.Guest4.Addr(), Guest6: forwardlab.Guest6.Addr()}
	if change != nil {
		change(&cfg)
	}
	w := &world{t: t, wire: forwardlab.NewWire(), policy: policy.NewLive(cfg.rules), rules: cfg.rules, budget: forwardlab.Budget(t, cfg.limit)}
	cfg.Policy = w.policy
	var err error
	w.gw, err = stack.New(stack.Config{Gateway4: gw4, Gateway6: gw6, Subnet4: forwardlab.Subnet4, Subnet6: forwardlab.Subnet6,
		MAC: forwardlab.GatewayMAC, MTU: forwardlab.WireMTU, CSum: true})
	if err != nil {
		t.Fatal(err)
	}
	f := forwardlab.NewForwarder(t, forwarder.Config{Budget: w.budget})
	f.AddEndpoint(cfg.EndpointConfig)
	w.Path = New(f, w.gw)
	w.gw.SetHandler(handler{p: w.Path})
	if err := w.gw.AddPort(0, w.wire, forwardlab.GuestMAC, nil); err != nil {
		t.Fatal(err)
	}
	w.guest = forwardlab.NewGuest(t, w.wire)
	w.stop = sync.OnceFunc(func() {
		w.Close()
		w.gw.Close()
		w.guest.Close()
	})
	t.Cleanup(w.stop)
	return w
}

// stats are the counters of the Path and those of the forwarder.
type stats struct {
	Stats
	forwardlab.TCPStats
}

func (w *world) Stats() stats { return stats{w.Path.Stats(), forwardlab.ReadTCP(w.f)} }

// pair is one connection from the guest to the host's loopback.
func (w *world) pair() (*forwardlab.GuestConn, *net.TCPConn) {
	w.t.Helper()
	l := forwardlab.NewServer(w.t, "127.0.0.1:0")
	before := w.Stats().Outbound
	g := w.guest.MustDial(l.At)
	h := l.Accept(w.t)
	forwardlab.Eventually(w.t, "both ends are joined", func() bool { return w.Stats().Outbound > before })
	return g, h
}

// resolver is a forwarder.Resolver for TCP.
type resolver struct{ serve func(net.Conn) }

func (r resolver) ServeTCP(c net.Conn)           { r.serve(c) }
func (r resolver) ServeUDP([]byte, func([]byte)) {}
