package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"rootlessnet/dns"
	"rootlessnet/forwarder"
	"rootlessnet/internal/spin"
	"rootlessnet/netns"
	"rootlessnet/policy"
	"rootlessnet/stack"
	"rootlessnet/tap"
	"rootlessnet/userns"
)

// gateway is the data plane of one bridge: what stands between the link device and the host's sockets.
type gateway struct {
	s        *sandbox
	resolver *dns.Resolver
	ports    *ports

	dev      tap.Device // set by attach
	info     tap.Info
	stack    *stack.Stack
	streams  *forwarder.Streams
	grams    *forwarder.Datagrams
	spin     *spin.Group
	policy   *policy.Live
	loopback *forwarder.Loopback // for clients on the host's loopback; nil: they go by the link
	rules    *os.File            // what the kernel road's rules inside live by; nil without one
	datapath string              // DatapathStack or DatapathSplice

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// flows is the stack.Handler: TCP to one half of the forwarder, the rest to the other.
type flows struct {
	*forwarder.Streams
	*forwarder.Datagrams
}

// newGateway binds every published port and starts the resolver; there is no link yet.
func newGateway(s *sandbox) (g *gateway, err error) {
	g = &gateway{s: s, stop: func() {}, datapath: DatapathStack, spin: spin.NewGroup()}
	if g.ports, err = bindPorts(s.plan.ports, s.plan.listeners); err != nil {
		g.spin.Close()
		return nil, err
	}
	cfg := dns.Config{Search: s.plan.dnsSearch, Options: s.plan.dnsOptions, Names: g.names(), Logger: s.log}
	for _, a := range s.plan.dns {
		cfg.Upstreams = append(cfg.Upstreams, netip.AddrPortFrom(a, 0))
	}
	if g.resolver, err = dns.New(cfg); err != nil {
		g.ports.close()
		g.spin.Close()
		return nil, err
	}
	return g, nil
}

// extraHosts are the names of --add-host, and those of the host that are not among them.
func (g *gateway) extraHosts() (list []dns.Host) {
	hosts := g.s.current().hostAddrs()
	add := func(name string, addrs ...netip.Addr) {
		for _, a := range addrs {
			list = append(list, dns.Host{Addr: a, Name: name})
		}
	}
	given := map[string]bool{}
	for _, h := range g.s.plan.hosts {
		given[strings.ToLower(h.name)] = true
		if h.addr.IsValid() {
			add(h.name, h.addr)
		} else {
			add(h.name, hosts...)
		}
	}
	for _, name := range hostNames {
		if !given[name] {
			add(name, hosts...)
		}
	}
	return list
}

// names is what the resolver answers itself.
func (g *gateway) names() map[string][]netip.Addr {
	m := map[string][]netip.Addr{}
	for _, h := range g.extraHosts() {
		m[h.Name] = append(m[h.Name], h.Addr)
	}
	return m
}

func (g *gateway) resolvConf() []byte {
	servers := g.s.current().dnsAddresses()
	if len(servers) > 1 && servers[0].Is4() {
		servers = servers[:1] // the others are the same resolver
	}
	return g.resolver.GuestConfig(servers...)
}

func (g *gateway) hostsFile(hostname string) []byte {
	var guests []netip.Addr
	for _, a := range g.s.current().guests {
		guests = append(guests, a.Addr())
	}
	return dns.HostsFile(hostname, guests, g.extraHosts())
}

// kind is the link in use.
func (g *gateway) kind() string { return string(g.info.Kind) }

// attach takes the link over and starts everything that stands behind it.
func (g *gateway) attach(file *os.File, kind string, can netns.LinkResult) error {
	s, a := g.s, g.s.plan.addrs
	if file == nil {
		return errors.New("the namespace has no link device")
	}
	for _, r := range can.Refused {
		s.log.Info("link kind refused", "kind", r.Kind, "reason", r.Reason)
	}
	g.info = tap.Info{Kind: tap.Kind(kind), Name: s.plan.ifName, MAC: s.plan.mac, MTU: s.plan.mtu, CSum: can.CSum, TSO: can.TSO, USO: can.USO}
	if s.plan.network == networkAttach {
		g.info.MAC = can.MAC // the interface may have been there, or be somebody else's to configure
	}
	dev, err := tap.FromFD(file, g.info)
	if err != nil {
		return err
	}
	if s.cfg.PCAP != "" {
		if dev, err = g.capture(dev); err != nil {
			return err
		}
	}
	g.dev = dev
	if d, ok := dev.(tap.BusyPoller); ok {
		d.SetBusyPollGroup(g.spin)
	}
	sc := s.plan.stackConfig()
	sc.CSum, sc.TSO, sc.Logger = can.CSum, can.TSO, s.log
	g.stack, err = stack.New(sc)
	if err != nil {
		dev.Close()
		return err
	}
	if err := g.openLoopback(); err != nil {
		dev.Close()
		return err
	}
	g.policy = policy.NewLive(s.plan.policyConfig(s.cfg.AllowMetadata))
	subnets, dnsAddrs := s.plan.subnets(), s.plan.dnsAddresses()
	g.streams = forwarder.NewStreams(forwarder.StreamsConfig{
		Guest: g.stack, Policy: g.policy, Gateway4: a.gateway, Gateway6: a.gateway6, Guest4: a.guest, Guest6: a.guest6,
		Subnets: subnets, Loopback: g.loopback, ServeDNS: g.resolver.ServeTCP, DNSAddrs: dnsAddrs,
		Source4: s.cfg.OutboundAddr, Source6: s.cfg.OutboundAddr6, Spin: g.spin, Logger: s.log,
	})
	g.grams, err = forwarder.NewDatagrams(forwarder.DatagramsConfig{
		Guest: g.stack, Policy: g.policy, Gateway4: a.gateway, Gateway6: a.gateway6, Subnets: subnets,
		DNS: g.resolver.ServeUDP, DNSAddrs: dnsAddrs,
		Source4: s.cfg.OutboundAddr, Source6: s.cfg.OutboundAddr6, Spin: g.spin, Logger: s.log,
	})
	if err != nil {
		dev.Close()
		return err
	}
	to, err := s.cfg.forwarding(s.plan)
	if err != nil {
		dev.Close()
		return err
	}
	g.streams.SetAddresses(to)
	g.grams.SetAddresses(to)
	g.stack.SetHandler(flows{g.streams, g.grams})
	if err := g.openKernelRoad(); err != nil {
		dev.Close()
		return err
	}
	if err := g.ports.connect(g); err != nil {
		dev.Close()
		return err
	}
	return g.stack.AddPort(0, dev, g.info.MAC, func(err error) {
		s.log.Debug("link ended", "err", err)
		s.linkEnded(err)
	})
}

// openKernelRoad has TCP joined by the kernel, where it can be and is wanted.
func (g *gateway) openKernelRoad() error {
	s := g.s
	var reason error
	switch {
	case s.plan.datapath == DatapathStack:
		return nil
	case s.plan.datapath == DatapathAuto && s.cfg.PCAP != "":
		return nil // a capture shows what is on the link
	case s.ns == nil:
		reason = errors.New("the namespace is not entered")
	default:
		d := netns.RedirectConfig{Uplink: g.info.Name, IPv6: s.plan.addrs.gateway6.IsValid()}
		var k *netns.RedirectHandles
		if k, reason = s.ns.Redirect(context.Background(), d); reason == nil {
			if err := g.streams.UseKernel(forwarder.Kernel{Packets: k.Packets, Loopback: netns.LoopbackIndex, Listeners: k.Listeners, Mint: k.Pool, LinkPace: netns.StackFlowRefresh,
				Forward: func() error { return s.ns.RedirectForwarded(context.Background(), k) }}); err != nil {
				_ = k.Rules.Close()
				return err
			}
			g.rules = k.Rules
			g.stack.SetSYNHandler(g.streams)
			g.datapath = DatapathSplice
			return nil
		}
	}
	if s.plan.datapath == DatapathSplice {
		return fmt.Errorf("datapath splice: %w", reason)
	}
	s.log.Info("TCP goes through the userspace stack", "reason", reason)
	return nil
}

// capture puts a recorder in front of the device.
func (g *gateway) capture(dev tap.Device) (tap.Device, error) {
	// Non-blocking: a FIFO that nobody reads is an error, not a wait.
	f, err := os.OpenFile(g.s.cfg.PCAP, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("packet capture: %w", err)
	}
	c, err := tap.NewCapture(dev, f, g.s.log)
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("packet capture: %w", err)
	}
	return c, nil
}

// follow keeps what depends on the host and on the command up to date: the resolver's file, and with PublishAll the
// ports.
func (g *gateway) follow(s *sandbox) {
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	if s.plan.network == NetworkBridge {
		g.wg.Go(func() { g.followResolver(ctx) })
	}
	if s.plan.publishAll {
		f := &listenFollower{ports: g.ports, procNet: fmt.Sprintf("/proc/%d/net", s.ns.InitPID()), log: s.log, onPublish: s.cfg.OnPublish}
		g.wg.Go(func() { f.run(ctx) })
	}
}

func (g *gateway) followResolver(ctx context.Context) {
	for {
		select {
		case <-g.resolver.Changed():
			if err := g.s.ns.UpdateFiles(userns.Files{ResolvConf: g.resolvConf()}); err != nil {
				g.s.log.Debug("resolv.conf not updated", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (g *gateway) stopFollowing() {
	g.stop()
	g.wg.Wait()
}

func (g *gateway) close() {
	// In a namespace that is not ours, closing the rules' descriptor and that of the link takes the kernel 20 ms each
	// (synchronize_rcu): both at once.
	rules := make(chan struct{})
	go func() {
		defer close(rules)
		if g.rules != nil {
			_ = g.rules.Close()
		}
	}()
	defer func() { <-rules }()
	g.ports.close()
	if g.streams != nil {
		g.streams.Close()
	}
	if g.loopback != nil {
		g.loopback.Close()
	}
	if g.stack != nil {
		g.stack.Close()
	}
	if g.grams != nil {
		_ = g.grams.Close()
	}
	_ = g.resolver.Close()
	g.spin.Close()
}

// listenerAddr tells what f is: a listening TCP socket or a bound UDP socket made by somebody else.
func listenerAddr(f *os.File) (proto string, addr netip.AddrPort, err error) {
	if l, err := net.FileListener(f); err == nil {
		defer l.Close()
		if t, ok := l.Addr().(*net.TCPAddr); ok {
			return "tcp", unmapPort(t.AddrPort()), nil
		}
		return "", addr, fmt.Errorf("inherited socket %s: neither TCP nor UDP", f.Name())
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return "", addr, fmt.Errorf("inherited socket %s: %w", f.Name(), err)
	}
	defer c.Close()
	if u, ok := c.LocalAddr().(*net.UDPAddr); ok {
		return "udp", unmapPort(u.AddrPort()), nil
	}
	return "", addr, fmt.Errorf("inherited socket %s: neither TCP nor UDP", f.Name())
}

func unmapPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
