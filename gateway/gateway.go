package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"rootlessnet/dns"
	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/forwarder/loopback"
	"rootlessnet/forwarder/splicetcp"
	"rootlessnet/forwarder/tcp"
	"rootlessnet/forwarder/udp"
	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/spin"
	"rootlessnet/plan"
	"rootlessnet/policy"
	"rootlessnet/stack"
	"rootlessnet/tap"
)

// Config is what a Gateway is made of.
type Config struct {
	// Plan must have a gateway (Plan.HasGateway).
	Plan   *plan.Plan
	Logger *slog.Logger // nil: nothing is logged
	// OnPublish, if set, is called for each port that is opened because of Plan.PublishAll; not concurrently.
	OnPublish func(plan.PortMapping)
	// OnLinkEnd, if set, is called once if the link device fails or is closed by its other end. It must not block.
	OnLinkEnd func(error)
}

// Gateway is the assembled network of one sandbox. Its exported methods may be called concurrently, except that New,
// Connect, Follow, StopFollowing and Close are called in this order by its owner.
type Gateway struct {
	cfg       Config
	log       *slog.Logger
	current   atomic.Pointer[plan.Plan] // the plan with the addresses that are in force
	spin      *spin.Group
	forwarder *forwarder.Forwarder
	resolver  *dns.Resolver
	ports     *ports
	forwards  *loopbackForwards
	host      host

	// The following fields are set by Connect and not changed afterwards.
	ns              Namespace // nil: the namespace is not entered
	dev             tap.Device
	info            tap.Info
	stack           *stack.Stack
	policy          *policy.Live
	endpoint        *forwarder.Endpoint
	tcp             *tcp.Path
	splice          *splicetcp.Path // nil on the stack path
	udp             *udp.Path
	loopbackClients *loopback.Relay // serves clients of published ports on the host's loopback; nil: they go by the link
	rules           *os.File        // the redirect rules inside exist until this is closed; nil on the stack path
	datapath        string          // plan.DatapathStack or plan.DatapathSplice

	followers followers
}

// New binds every published port of the plan and starts the resolver. There is no link yet.
func New(cfg Config) (g *Gateway, err error) {
	g = &Gateway{cfg: cfg, log: cfg.Logger, spin: spin.NewGroup(), datapath: plan.DatapathStack}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	p := cfg.Plan
	g.current.Store(p)
	g.host.mu.SetRank(lockrank.GatewayHost)
	if g.ports, err = bindPorts(p.Ports, p.Listeners, g.log); err != nil {
		g.spin.Close()
		return nil, err
	}
	g.forwarder = forwarder.New(forwarder.Config{Spin: g.spin, Logger: g.log})
	g.forwards = newLoopbackForwards(g.forwarder)
	d := dns.Config{Search: p.DNSSearch, Options: p.DNSOptions, Names: g.names(), Logger: g.log}
	for _, a := range p.DNS {
		d.Upstreams = append(d.Upstreams, netip.AddrPortFrom(a, 0))
	}
	if g.resolver, err = dns.New(d); err != nil {
		g.ports.close()
		g.spin.Close()
		return nil, err
	}
	return g, nil
}

// Plan is the plan with the addresses that are in force now.
func (g *Gateway) Plan() *plan.Plan { return g.current.Load() }

// LinkInfo describes the link: its kind, MTU and MAC address, and the name of the interface inside.
func (g *Gateway) LinkInfo() (kind, name, mac string) {
	return string(g.info.Kind), g.info.Name, g.info.MAC.String()
}

// Flows is the table of live flows, on every datapath.
func (g *Gateway) Flows() *flow.Table { return g.forwarder.Flows }

// Datapath is the path that TCP takes: plan.DatapathStack or plan.DatapathSplice.
func (g *Gateway) Datapath() string { return g.datapath }

// Connect takes the link over and starts the data plane. ns is nil if the namespace is not entered. On an error the caller
// calls Close.
func (g *Gateway) Connect(ns Namespace, link Link) error {
	g.ns = ns
	if err := g.openDevice(link); err != nil {
		return err
	}
	redirect := g.startRedirect()
	if err := g.assemble(redirect); err != nil {
		redirect.cancel()
		g.dev.Close()
		return err
	}
	return g.stack.AddPort(guestID, g.dev, g.info.MAC, func(err error) {
		g.log.Debug("link ended", "err", err)
		if g.cfg.OnLinkEnd != nil {
			g.cfg.OnLinkEnd(err)
		}
	})
}

// openDevice opens the link device, behind a capture if the plan has one.
func (g *Gateway) openDevice(link Link) error {
	p := g.cfg.Plan
	if link.file == nil {
		return errors.New("the namespace has no link device")
	}
	for _, r := range link.refused {
		g.log.Info("link kind refused", "kind", r.Kind, "reason", r.Reason)
	}
	g.info = link.info
	g.info.MTU = p.MTU
	if g.info.Name == "" {
		g.info.Name = p.IfName
	}
	if p.Network != plan.NetworkAttach { // an attached namespace may have had the interface, with a MAC address of its own
		g.info.MAC = p.MAC
	}
	dev, err := tap.FromFD(link.file, g.info)
	if err != nil {
		return err
	}
	if p.PCAP != "" {
		if dev, err = capture(dev, p.PCAP, g.log); err != nil {
			return err
		}
	}
	g.dev = dev
	if d, ok := dev.(tap.BusyPoller); ok {
		d.SetBusyPollGroup(g.spin)
	}
	return nil
}

// Close ends all ports, forwards and connections, and closes the link. It waits for loopback forwards that are being added:
// the owner closes the namespace first.
func (g *Gateway) Close() {
	g.forwards.close()
	// In a namespace that another process holds open, the kernel takes 20 ms to close the descriptor of the rules, and as long
	// to close that of the link (synchronize_rcu). Both are closed at the same time.
	rules := make(chan struct{})
	go func() {
		defer close(rules)
		if g.rules != nil {
			_ = g.rules.Close()
		}
	}()
	defer func() { <-rules }()
	g.ports.close()
	if g.tcp != nil {
		g.tcp.Close()
	}
	if g.loopbackClients != nil {
		g.loopbackClients.Close()
	}
	if g.stack != nil {
		g.stack.Close()
	}
	if g.splice != nil {
		g.splice.Close()
	}
	if g.udp != nil {
		_ = g.udp.Close()
	}
	_ = g.resolver.Close()
	g.spin.Close()
}

// followers are the goroutines that keep the sandbox up to date with the host and with the command.
type followers struct {
	cancel context.CancelFunc // nil before Follow
	wg     sync.WaitGroup
}

func (f *followers) stop() {
	if f.cancel != nil {
		f.cancel()
	}
	f.wg.Wait()
}
