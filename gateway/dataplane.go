package gateway

import (
	"context"
	"errors"
	"fmt"

	"rootlessnet/forwarder"
	"rootlessnet/netns"
	"rootlessnet/plan"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// flows is the stack.Handler: TCP goes to one half of the forwarder, UDP and ICMP echo to the other.
type flows struct {
	*forwarder.Streams
	*forwarder.Datagrams
}

// assemble makes the stack and the forwarder for the device, and connects the published ports.
func (g *Gateway) assemble() (err error) {
	p, a := g.cfg.Plan, g.cfg.Plan.Addrs
	sc := stackConfig(p)
	sc.CSum, sc.TSO, sc.Logger = g.info.CSum, g.info.TSO, g.log
	if g.stack, err = stack.New(sc); err != nil {
		return err
	}
	if err := g.openLoopbackClients(); err != nil {
		return err
	}
	g.policy = policy.NewLive(policyConfig(p))
	subnets, dnsAddrs := onLink(p), p.DNSAddresses()
	g.streams = forwarder.NewStreams(forwarder.StreamsConfig{
		Guest: g.stack, Policy: g.policy, Gateway4: a.Gateway, Gateway6: a.Gateway6, Guest4: a.Guest, Guest6: a.Guest6,
		Subnets: subnets, Loopback: g.loopbackClients, ServeDNS: g.resolver.ServeTCP, DNSAddrs: dnsAddrs,
		Source4: p.Outbound.Addr, Source6: p.Outbound.Addr6, Spin: g.spin, Logger: g.log,
	})
	g.grams, err = forwarder.NewDatagrams(forwarder.DatagramsConfig{
		Guest: g.stack, Policy: g.policy, Gateway4: a.Gateway, Gateway6: a.Gateway6, Subnets: subnets,
		DNS: g.resolver.ServeUDP, DNSAddrs: dnsAddrs,
		Source4: p.Outbound.Addr, Source6: p.Outbound.Addr6, Spin: g.spin, Logger: g.log,
	})
	if err != nil {
		return err
	}
	to, err := addresses(p)
	if err != nil {
		return err
	}
	g.streams.SetAddresses(to)
	g.grams.SetAddresses(to)
	g.stack.SetHandler(flows{g.streams, g.grams})
	if err := g.openSplicePath(); err != nil {
		return err
	}
	return g.ports.connect(g)
}

// openSplicePath redirects the guest's TCP to sockets of its own namespace, which the kernel then joins with those of the
// host, where the plan wants that and the kernel can do it. Otherwise TCP stays on the stack path.
func (g *Gateway) openSplicePath() error {
	p := g.cfg.Plan
	if p.Datapath == plan.DatapathStack || p.Datapath == plan.DatapathAuto && p.PCAP != "" { // a capture shows only what is on the link
		return nil
	}
	reason := errors.New("the namespace is not entered")
	if g.ns != nil {
		var redirect *netns.RedirectHandles
		redirect, reason = g.ns.Redirect(context.Background(), netns.RedirectConfig{Uplink: g.info.Name, IPv6: p.Addrs.Gateway6.IsValid()})
		if reason == nil {
			return g.useRedirect(redirect)
		}
	}
	if p.Datapath == plan.DatapathSplice {
		return fmt.Errorf("datapath splice: %w", reason)
	}
	g.log.Info("TCP takes the userspace stack, which is slower than the splice path", "reason", reason)
	return nil
}

// useRedirect gives the sockets of a redirected namespace to the forwarder.
func (g *Gateway) useRedirect(k *netns.RedirectHandles) error {
	err := g.streams.UseKernel(forwarder.Kernel{
		Packets: k.Packets, Loopback: netns.LoopbackIndex, Listeners: k.Listeners, Mint: k.Pool, LinkPace: netns.StackFlowRefresh,
		Forward: func() error { return g.ns.RedirectForwarded(context.Background(), k) },
	})
	if err != nil {
		_ = k.Rules.Close()
		return err
	}
	g.rules = k.Rules
	g.stack.SetSYNHandler(g.streams)
	g.datapath = plan.DatapathSplice
	return nil
}
