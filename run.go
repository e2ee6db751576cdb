package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rootlessnet/api"
	"rootlessnet/dns"
	"rootlessnet/internal/race"
	"rootlessnet/internal/signals"
	"rootlessnet/internal/state"
	"rootlessnet/userns"
)

// Init runs the part of this program that stands inside the namespaces, when that is what it was executed for. It
// is called by the package's own initialisation; a program needs to call it only if an init function that runs earlier
// must not run twice.
func Init() { userns.Init() }

func init() { Init() }

// uplinkName is what the uplink is called inside, as Docker has it.
const uplinkName = "eth0"

// hostNames are the names of the host inside: Docker's and Podman's.
var hostNames = []string{"host.docker.internal", "host.containers.internal"}

// Run runs a command in a sandbox and returns its exit code when it and everything it started, and everyone who joined
// its network, has ended. The error is nil when the command ran; the code is then the command's own or 128+n. Otherwise
// nothing was left behind and the code is ExitFailure, ExitCannotExec or ExitNotFound. When ctx ends, the command is
// killed. Several may run at once.
func Run(ctx context.Context, c Config) (exitCode int, err error) {
	s := newSandbox(c)
	defer s.closeListenerFiles()
	if s.plan, err = c.plan(netlinkHost{}); err != nil {
		return ExitFailure, err
	}
	s.warnPlan()
	defer s.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := s.early(cancel)
	defer ready()
	if err := s.prepare(ctx); err != nil {
		return ExitFailure, err
	}
	ready()
	if err := ctx.Err(); err != nil {
		return ExitFailure, err
	}
	return s.run(ctx)
}

func newSandbox(c Config) *sandbox {
	s := &sandbox{cfg: c, log: c.Logger, end: make(chan struct{}), linkEnd: make(chan error, 1), stopScheduler: func() {}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

func (s *sandbox) warnPlan() {
	for _, w := range s.plan.warnings {
		s.log.Warn(w)
	}
}

// sandbox is one Run or one Attach. It goes through the states of the package documentation in one direction; what a later state
// needs is set before it is reached and not changed after.
type sandbox struct {
	cfg  Config
	log  *slog.Logger
	plan *plan

	dir    *state.Dir     // nil where an attached sandbox could not have one
	entry  *state.Entry   // likewise
	ns0    *userns.Target // of Attach; nil with a TAP
	tap    *os.File       // of Attach, until the gateway has it
	target *api.Lease     // of the network joined; nil unless container mode
	joined state.Record
	ns     *userns.Sandbox // nil with a TAP
	output *os.File        // where the command's output comes out; nil unless that is logged
	net    *gateway        // bridge mode only
	api    *api.Server

	loopbacks loopbacks
	changing  sync.Mutex           // held while the network changes
	now       atomic.Pointer[plan] // see current

	stopScheduler context.CancelFunc

	mu      sync.Mutex
	members int  // leases that keep the network; guarded by mu
	ending  bool // no lease is given any more; guarded by mu
	idle    chan struct{}
	end     chan struct{}
	linkEnd chan error  // has room for the one error
	kept    []os.Signal // for the command, since before it started
	wg      sync.WaitGroup
}

// prepare does everything up to the command: a sandbox that is prepared has its listeners bound, its namespaces made
// and its gateway running.
func (s *sandbox) prepare(ctx context.Context) (err error) {
	if err := s.openState(); err != nil {
		return err
	}
	if s.plan.network == ContainerPrefix {
		if err := s.lookUpTarget(ctx); err != nil {
			return err
		}
	}
	if s.dir != nil {
		if s.entry, err = s.dir.Create(s.plan.name); err != nil {
			return err
		}
	}
	if s.plan.bridge() {
		if s.net, err = newGateway(s); err != nil {
			return err
		}
	}
	if s.tap == nil {
		if s.ns, err = userns.Start(ctx, s.namespaces()); err != nil {
			return err
		}
	}
	if err := s.connect(); err != nil {
		return err
	}
	if err := s.listen(); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if s.cfg.Confine {
		if err := s.confine(); err != nil {
			return err
		}
		if err := userns.Filter(); err != nil {
			s.log.Info("without a filter of system calls", "err", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		s.wg.Go(func() { schedule(ctx) })
		s.stopScheduler = cancel
	}
	return nil
}

// confine is userns.Confine, but for one thing: a build with the race detector has cgo, with which capabilities cannot be
// dropped. Whoever starts it as root of a namespace, as Podman does, is to be able to test it; nobody is to ship it.
func (s *sandbox) confine() error {
	err := userns.Confine()
	if race.Enabled && errors.Is(err, syscall.ENOTSUP) {
		s.log.Warn("THIS BUILD IS FOR TESTS ONLY, it keeps its capabilities: it has the race detector", "err", err)
		return nil
	}
	return err
}

// connect puts the gateway on its end of the link.
func (s *sandbox) connect() error {
	switch {
	case s.net == nil:
		return nil
	case s.tap == nil:
		return s.net.attach(s.ns.LinkFD())
	}
	file, kind, can, err := s.adopt()
	if err != nil {
		return err
	}
	return s.net.attach(file, kind, can)
}

// listen opens the control socket, at each of its paths.
func (s *sandbox) listen() error {
	s.api = api.NewServer((*backend)(s), api.ServerOptions{Logger: s.log})
	if s.entry != nil {
		if err := s.api.Listen(s.entry.SocketPath(), false); err != nil {
			return err
		}
	}
	if s.cfg.APISocket == "" {
		return nil
	}
	return s.api.Listen(s.cfg.APISocket, true)
}

// lookUpTarget finds the sandbox whose network is joined, and takes a lease on it.
func (s *sandbox) lookUpTarget(ctx context.Context) error {
	rec, err := s.dir.Lookup(s.plan.join)
	if errors.Is(err, state.ErrNotFound) {
		return fmt.Errorf("No such container: %s", s.plan.join)
	}
	if err != nil {
		return err
	}
	client := api.NewClient(s.dir.SocketPath(rec))
	defer client.Close()
	if rec.Status == state.Running {
		s.target, err = client.Lease(ctx, api.LeaseMember)
	}
	if s.target == nil {
		s.log.Debug("no lease", "sandbox", rec.Name, "err", err)
		return fmt.Errorf("cannot join network namespace of a non running container: %s", s.plan.join)
	}
	s.joined = rec
	return nil
}

// namespaces is what init has to make.
func (s *sandbox) namespaces() userns.Config {
	p := s.plan
	if p.network == networkAttach {
		return userns.Config{Network: userns.NetworkAttach, Target: s.ns0, Link: p.userLink(), Logger: s.log}
	}
	c := userns.Config{IDMap: userns.IDMap(p.userNS), PIDNamespace: s.cfg.PIDNamespace, Hidden: []string{s.dir.Path()}, Logger: s.log}
	c.Files.Hostname = p.hostname
	if c.Files.Hostname == "" && (p.bridge() || p.network == NetworkNone) {
		c.Files.Hostname = state.ShortID(s.entry.ID())
	}
	switch {
	case p.bridge():
		c.Network = userns.NetworkNew
		c.Files.ResolvConf = s.net.resolvConf()
		c.Files.Hosts = s.net.hostsFile(c.Files.Hostname)
		c.Link = p.userLink()
	case p.network == NetworkNone:
		c.Network = userns.NetworkNone
		c.Files.Hosts = dns.HostsFile(c.Files.Hostname, nil, s.extraHosts())
		c.Files.ResolvConf = s.changedResolvConf()
	case p.network == NetworkHost:
		c.Network = userns.NetworkHost
		c.Files.Hosts = s.hostHosts()
		c.Files.ResolvConf = s.changedResolvConf()
	default:
		c.Network, c.JoinPID = userns.NetworkJoin, s.joined.InitPID
	}
	return c
}

// extraHosts are the lines of --add-host whose address is known without a gateway.
func (s *sandbox) extraHosts() (list []dns.Host) {
	for _, h := range s.plan.hosts {
		if h.addr.IsValid() {
			list = append(list, dns.Host{Addr: h.addr, Name: h.name})
		}
	}
	return list
}

// hostHosts is the host's own hosts file and the lines of --add-host; nil when there are none.
func (s *sandbox) hostHosts() []byte {
	if len(s.plan.hosts) == 0 {
		return nil
	}
	text, _ := os.ReadFile("/etc/hosts")
	b := strings.Builder{}
	b.Write(text)
	for _, h := range s.plan.hosts {
		a := h.addr
		if !a.IsValid() { // host-gateway: the host is here
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		fmt.Fprintf(&b, "%s\t%s\n", a, h.name)
	}
	return []byte(b.String())
}

// changedResolvConf is what host and none mode see where --dns and its like change the host's; nil where they do not.
func (s *sandbox) changedResolvConf() []byte {
	if p := s.plan; len(p.dns) == 0 && len(p.dnsSearch) == 0 && len(p.dnsOptions) == 0 {
		return nil
	}
	r, err := dns.New(dns.Config{Search: s.plan.dnsSearch, Options: s.plan.dnsOptions})
	if err != nil {
		return nil
	}
	defer r.Close()
	servers := s.plan.dns
	if len(servers) == 0 {
		servers = r.Servers()
	}
	return r.GuestConfig(servers...)
}

// run starts the command and waits for it and for the leases.
func (s *sandbox) run(ctx context.Context) (int, error) {
	stdout, stderr := s.cfg.Stdout, s.cfg.Stderr
	if s.cfg.LogOutput {
		f, err := s.logOutput()
		if err != nil {
			return ExitFailure, err
		}
		defer f.Close()
		if stdout == nil {
			stdout = f
		}
		if stderr == nil {
			stderr = f
		}
	}
	// The record says "running" before the command can be noticed: who has seen its first word may go by it.
	if err := s.entry.Update(s.describe); err != nil {
		return ExitFailure, err
	}
	pid, err := s.ns.Run(userns.Command{Argv: s.cfg.Argv, Env: s.cfg.Env, Dir: s.cfg.Dir, Stdin: s.cfg.Stdin, Stdout: stdout, Stderr: stderr})
	if err != nil {
		var ee *userns.ExecError
		if errors.As(err, &ee) {
			return ee.Code, err
		}
		return ExitFailure, err
	}
	if s.net != nil {
		s.net.follow(s)
	}
	commandGone := make(chan struct{})
	s.wg.Go(func() { s.forwardSignals(commandGone) })
	if s.target != nil {
		s.wg.Go(func() {
			select {
			case <-s.target.Done(): // the network is gone: nothing the command does can reach anybody
				s.log.Error("the network of the joined sandbox has ended", "sandbox", s.joined.Name)
				_ = s.ns.Close()
			case <-s.end:
			}
		})
	}
	stop := context.AfterFunc(ctx, func() { _ = s.ns.Close() })
	defer stop()
	if s.cfg.Confine {
		s.wg.Go(func() { s.settle() })
	}
	if s.cfg.OnStart != nil {
		s.cfg.OnStart(Started{ID: s.entry.ID(), Name: s.entry.Name(), PID: pid})
	}
	code, err := s.ns.Wait()
	close(commandGone)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if s.target != nil {
			err = fmt.Errorf("the network of %s has ended", s.joined.Name)
		}
		return ExitFailure, err
	}
	s.linger(ctx, code)
	return code, nil
}

// settle gives back what the start needed, once the command has lived for a moment.
func (s *sandbox) settle() {
	select {
	case <-time.After(settleAfter):
		debug.FreeOSMemory()
		userns.ReleaseCode()
	case <-s.end:
	}
}

// settleAfter is longer than most short commands take, which need not pay for it.
const settleAfter = 500 * time.Millisecond

// describe completes the record that other processes read.
func (s *sandbox) describe(r *state.Record) {
	p := s.current()
	r.Status = state.Running
	r.Command, r.Network = s.cfg.Argv, p.network
	if s.ns != nil {
		r.InitPID, r.NetNS = s.ns.InitPID(), s.ns.NetNS()
	}
	if s.ns0 != nil {
		r.Command, r.NetNS = []string{networkAttach, s.ns0.String()}, s.ns0.Inode() // our process in there tells nobody its own
	}
	r.Hostname = p.hostname
	switch {
	case p.network == ContainerPrefix:
		r.Network = ContainerPrefix + s.joined.ID
		r.Hostname = s.joined.Hostname
	case r.Hostname == "" && p.network == NetworkHost:
		r.Hostname, _ = os.Hostname()
	case r.Hostname == "" && p.network != networkAttach:
		r.Hostname = s.shortID()
	}
	if !p.bridge() {
		return
	}
	r.Interface, r.Link, r.Datapath, r.MAC, r.MTU = p.ifName, s.net.kind(), s.net.datapath, s.net.info.MAC.String(), p.mtu
	r.Subnets, r.Gateways, r.Addresses = nil, nil, nil
	for _, g := range p.guests {
		r.Subnets, r.Addresses = append(r.Subnets, g.Masked()), append(r.Addresses, g.Addr())
		r.Gateways = append(r.Gateways, p.addrs.gatewayOf(g.Addr()))
	}
	r.Ports = nil
	for _, port := range s.net.ports.list() {
		r.Ports = append(r.Ports, port.String())
	}
}

// linger keeps the network while others are in it.
func (s *sandbox) linger(ctx context.Context, code int) {
	s.mu.Lock()
	if s.members == 0 {
		s.ending = true
		s.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	s.idle = idle
	n := s.members
	s.mu.Unlock()
	s.log.Warn(fmt.Sprintf("the command has exited with %d; its network stays for %d that joined it", code, n))
	_ = s.entry.Update(func(r *state.Record) { r.Status, r.ExitCode = state.Lingering, &code })
	for {
		select {
		case <-idle:
			return
		case <-ctx.Done():
			return
		case sig := <-s.cfg.Signals:
			if signals.Ends(sig) {
				return
			}
		}
	}
}

// lease counts somebody in who needs the network (member) or only wants to know when it ends (exec).
func (s *sandbox) lease(kind api.LeaseKind) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, api.Conflict(errors.New("the sandbox has ended"))
	}
	if kind == api.LeaseExec {
		return func() {}, nil
	}
	s.members++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.members--
		if s.members == 0 && s.idle != nil {
			s.ending = true
			close(s.idle)
			s.idle = nil
		}
	}), nil
}

// close undoes what was made, in the opposite order.
func (s *sandbox) close() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	close(s.end)
	s.stopScheduler()
	if s.net != nil {
		s.net.stopFollowing()
	}
	if s.ns != nil {
		_ = s.ns.Close()
	}
	if s.output != nil {
		_ = s.output.Close()
	}
	s.wg.Wait()
	s.loopbacks.close()
	if s.api != nil {
		_ = s.api.Close()
	}
	if s.net != nil {
		s.net.close()
	}
	if s.ns0 != nil {
		s.ns0.Close()
	}
	if s.tap != nil {
		_ = s.tap.Close()
	}
	if s.target != nil {
		_ = s.target.Close()
	}
	if s.entry != nil {
		if err := s.entry.Close(); err != nil {
			s.log.Warn("state directory left behind", "err", err)
		}
	}
}

func (s *sandbox) closeListenerFiles() {
	for _, f := range s.cfg.Listeners {
		_ = f.Close()
	}
}
