package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"rootlessnet/api"
	"rootlessnet/gateway"
	"rootlessnet/internal/terminal"
	"rootlessnet/plan"
	"rootlessnet/userns"
)

// sandbox is one Run or one Attach. It goes through the states of the package documentation in one direction. A field is set
// before the state that needs it is entered, and not changed afterwards.
type sandbox struct {
	cfg  plan.Config
	log  *slog.Logger
	plan *plan.Plan // as it was resolved; with a gateway, gateway.Plan has the addresses in force

	record  stateRecord
	target  attachTarget     // of Attach
	joined  joinedNetwork    // of container mode
	ns      *userns.Sandbox  // nil with a TAP
	network *gateway.Gateway // nil without a gateway
	control *api.Server

	leases  leases
	signals commandSignals
	output  outputLog
	term    terminal.Terminal // of Config.TTY
	held    []*os.File        // open until the command has ended, see openStreams
	sched   scheduler

	changing sync.Mutex // held while SetNetwork changes the network

	linkEnd chan error // capacity 1: linkEnded must not block
	end     chan struct{}
	wg      sync.WaitGroup
}

func newSandbox(c plan.Config) *sandbox {
	s := &sandbox{cfg: c, log: c.Logger, end: make(chan struct{}), linkEnd: make(chan error, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.signals.in, s.signals.jobControl = c.Signals, c.JobControl
	return s
}

func (s *sandbox) logWarnings() {
	for _, w := range s.plan.Warnings {
		s.log.Warn(w)
	}
}

// prepare does everything up to the command's start: afterwards the published ports are bound, the namespaces exist and the
// gateway runs. On an error the caller calls close.
func (s *sandbox) prepare(ctx context.Context) (err error) {
	if err := s.record.open(s.plan, s.cfg.RuntimeDir, s.log); err != nil {
		return err
	}
	if s.plan.Network == plan.ContainerPrefix {
		if s.joined, err = joinNetwork(ctx, s.record.dir, s.plan.Join, s.log); err != nil {
			return err
		}
	}
	if err := s.record.create(s.plan.Name); err != nil {
		return err
	}
	if s.plan.HasGateway() {
		if s.network, err = gateway.New(gateway.Config{Plan: s.plan, Logger: s.log, OnPublish: s.cfg.OnPublish, OnLinkEnd: s.linkEnded}); err != nil {
			return s.nameHolder(err)
		}
	}
	if s.target.tap == nil {
		if s.ns, err = userns.Start(ctx, s.namespaces()); err != nil {
			return err
		}
	}
	if err := s.connect(); err != nil {
		return s.nameHolder(err)
	}
	if err := s.listen(); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if s.cfg.Confine {
		return s.confine()
	}
	return nil
}

// namespaces is what the agent process has to create or to enter.
func (s *sandbox) namespaces() userns.Config {
	p := s.plan
	if p.Network == plan.NetworkAttach {
		return userns.Config{Network: userns.NetworkAttach, Target: s.target.ns, Link: gateway.Uplink(p), Logger: s.log}
	}
	c := userns.Config{IDMap: userns.IDMap(p.UserNS), PIDNamespace: s.cfg.PIDNamespace, Hidden: []string{s.record.dir.Path()}, Logger: s.log}
	for _, parameter := range p.Sysctls {
		c.Sysctls = append(c.Sysctls, userns.Sysctl(parameter))
	}
	c.ReadOnly = s.cfg.ReadOnly
	c.Files.Hostname = p.Hostname
	if c.Files.Hostname == "" && (p.HasGateway() || p.Network == plan.NetworkNone) {
		c.Files.Hostname = s.record.shortID()
	}
	switch {
	case p.HasGateway():
		c.Network = userns.NetworkNew
		c.Files.ResolvConf = s.network.ResolvConf()
		c.Files.Hosts = s.network.HostsFile(c.Files.Hostname)
		c.Link = gateway.Uplink(p)
	case p.Network == plan.NetworkNone:
		c.Network = userns.NetworkNone
		c.Files.Hosts = isolatedHosts(p, c.Files.Hostname)
		c.Files.ResolvConf = changedResolvConf(p)
	case p.Network == plan.NetworkHost:
		c.Network = userns.NetworkHost
		c.Files.Hosts = changedHosts(p)
		c.Files.ResolvConf = changedResolvConf(p)
	default:
		c.Network, c.JoinPID = userns.NetworkJoin, s.joined.record.InitPID
	}
	return c
}

// connect passes the link to the gateway.
func (s *sandbox) connect() error {
	switch {
	case s.network == nil:
		return nil
	case s.ns != nil:
		ns := namespace{s.ns}
		return s.network.Connect(ns, gateway.NamespaceLink(ns))
	}
	link, err := gateway.AdoptTAP(s.target.tap, s.plan)
	if err != nil {
		return err
	}
	s.target.tap = nil // now the gateway's
	return s.network.Connect(nil, link)
}

// listen opens the control socket at each of its paths.
func (s *sandbox) listen() error {
	s.control = api.NewServer(&backend{s}, api.ServerOptions{Logger: s.log})
	if s.record.entry != nil {
		if err := s.control.Listen(s.record.entry.SocketPath(), false); err != nil {
			return err
		}
	}
	if s.cfg.APISocket == "" {
		return nil
	}
	return s.control.Listen(s.cfg.APISocket, true)
}

// linkEnded is called by the gateway when the link device fails or is closed by its other end.
func (s *sandbox) linkEnded(err error) {
	select {
	case s.linkEnd <- err:
	default:
	}
}

// current is the plan with the addresses that are in force.
func (s *sandbox) current() *plan.Plan {
	if s.network != nil {
		return s.network.Plan()
	}
	return s.plan
}

// close undoes what was made, in the opposite order. It may be called in any state, once. exitCode and cause are what the record
// says, if it is kept.
func (s *sandbox) close(exitCode int, cause error) {
	s.leases.close()
	close(s.end)
	s.sched.stop()
	if s.network != nil {
		s.network.StopFollowing()
	}
	if s.ns != nil {
		_ = s.ns.Close()
	}
	s.finishStreams()
	s.output.close()
	s.wg.Wait()
	s.sched.wait()
	s.output.wait()
	if s.control != nil {
		_ = s.control.Close()
	}
	if s.network != nil {
		s.network.Close()
	}
	s.target.close()
	s.joined.close()
	if err := s.record.close(exitCode, cause); err != nil {
		s.log.Warn("cannot complete the state directory of the sandbox", "err", err)
	}
}

func (s *sandbox) closeListenerFiles() {
	for _, f := range s.cfg.Listeners {
		_ = f.Close()
	}
}
