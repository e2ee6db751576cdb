package gateway

import (
	"context"
	"errors"
	"fmt"

	"rootlessnet/forwarder"
	"rootlessnet/forwarder/splicetcp"
	"rootlessnet/forwarder/tcp"
	"rootlessnet/forwarder/udp"
	"rootlessnet/netns"
	"rootlessnet/plan"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// guestID is the one endpoint of a private network.
const guestID = 0

// handler is the stack.Handler: connections go to the stack path, UDP and ICMP echo to the datagram path.
type handler struct {
	*tcp.Path
	datagrams
}

// datagrams gives the embedded datagram path a name of its own.
type datagrams struct{ *udp.Path }

// assemble makes the stack and the datapaths for the device, and connects the published ports.
func (g *Gateway) assemble(redirect *pendingRedirect) (err error) {
	p := g.cfg.Plan
	sc := stackConfig(p)
	sc.CSum, sc.TSO, sc.Logger = g.info.CSum, g.info.TSO, g.log
	if g.stack, err = stack.New(sc); err != nil {
		return err
	}
	g.host.hostAddrs = ownAddrs(p)
	to, err := addresses(p, g.host.hostAddrs)
	if err != nil {
		return err
	}
	g.policy = policy.NewLive(policyConfig(p, g.host.hostAddrs))
	g.endpoint = g.forwarder.AddEndpoint(forwarder.EndpointConfig{
		ID: guestID, Policy: g.policy, Resolver: g.resolver, ResolverAddrs: p.DNSAddresses(), Subnets: onLink(p), Addresses: to,
		FullCone: p.UDPFullCone,
	})
	if err := g.openLoopbackClients(); err != nil {
		return err
	}
	g.tcp = tcp.New(g.forwarder, g.stack)
	if g.udp, err = udp.New(g.forwarder, g.stack); err != nil {
		return err
	}
	g.stack.SetHandler(handler{g.tcp, datagrams{g.udp}})
	if err := g.openSplicePath(redirect); err != nil {
		return err
	}
	return g.ports.connect(g)
}

// pendingRedirect is a redirect that the agent process sets up while this process assembles the rest.
type pendingRedirect struct {
	done    chan struct{} // closed when the following are set; nil if the redirect was not requested
	handles *netns.RedirectHandles
	err     error
}

// startRedirect has the agent redirect the guest's TCP to sockets of its own namespace, where the plan wants that. The result is
// for openSplicePath.
func (g *Gateway) startRedirect() *pendingRedirect {
	p, r := g.cfg.Plan, &pendingRedirect{}
	if g.ns == nil || p.Datapath == plan.DatapathStack || p.Datapath == plan.DatapathAuto && p.PCAP != "" {
		return r
	}
	r.done = make(chan struct{})
	c := netns.RedirectConfig{Uplink: g.info.Name, IPv6: p.Addrs.Gateway6.IsValid()}
	go func() {
		defer close(r.done)
		r.handles, r.err = g.ns.Redirect(context.Background(), c)
	}()
	return r
}

// take waits for the redirect and leaves its handles to the caller.
func (r *pendingRedirect) take() (*netns.RedirectHandles, error) {
	if r.done == nil {
		return nil, errors.New("the namespace is not entered")
	}
	<-r.done
	handles := r.handles
	r.handles = nil
	return handles, r.err
}

// cancel closes the handles that were not taken.
func (r *pendingRedirect) cancel() {
	if r.done == nil {
		return
	}
	if handles, err := r.take(); err == nil && handles != nil {
		handles.Close()
	}
}

// openSplicePath has the kernel join the sockets that the guest's TCP is redirected to with those of the host, where the plan
// wants that and the kernel can do it. Otherwise TCP stays on the stack path.
func (g *Gateway) openSplicePath(pending *pendingRedirect) error {
	p := g.cfg.Plan
	if p.Datapath == plan.DatapathStack || p.Datapath == plan.DatapathAuto && p.PCAP != "" { // a capture shows only what is on the link
		return nil
	}
	redirect, reason := pending.take()
	if reason == nil {
		return g.useRedirect(redirect)
	}
	if p.Datapath == plan.DatapathSplice {
		return fmt.Errorf("datapath splice: %w", reason)
	}
	g.log.Info("TCP takes the userspace stack, which is slower than the splice path", "reason", reason)
	return nil
}

// useRedirect starts the splice path with the sockets of a redirected namespace.
func (g *Gateway) useRedirect(r *netns.RedirectHandles) (err error) {
	g.splice, err = splicetcp.New(g.forwarder, splicetcp.Inside{
		Endpoint: guestID, Packets: r.Packets, Loopback: netns.LoopbackIndex, Listeners: r.Listeners, Pool: r.Pool,
		Forward: func() error { return g.ns.RedirectForwarded(context.Background(), r) },
	})
	if err != nil {
		_ = r.Rules.Close()
		return err
	}
	g.rules = r.Rules
	g.tcp.SetKeepAlive(netns.StackFlowRefresh)
	g.stack.SetSYNHandler(g.splice)
	g.datapath = plan.DatapathSplice
	return nil
}

// clientServers are the datapaths that may connect a client of a published port, in the order in which they are tried.
func (g *Gateway) clientServers() (list []forwarder.ClientServer) {
	if g.loopbackClients != nil {
		list = append(list, g.loopbackClients)
	}
	if g.splice != nil {
		list = append(list, g.splice)
	}
	return append(list, g.tcp)
}
