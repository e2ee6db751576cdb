package sandbox

import (
	"log/slog"
	"os"

	"rootlessnet/internal/state"
	"rootlessnet/plan"
)

// stateRecord is the sandbox's entry in the state directory, by which other programs find it. Its zero value, and that of an
// attached sandbox that has no state directory, has no entry: all methods then do nothing.
type stateRecord struct {
	dir   *state.Dir
	entry *state.Entry
}

// open opens the state directory. A command needs one. An attached sandbox with neither a name nor a directory of its own may run
// without.
func (r *stateRecord) open(p *plan.Plan, path string, log *slog.Logger) error {
	dir, err := state.Open(path)
	if err != nil && p.Network == plan.NetworkAttach && path == "" && p.Name == "" {
		log.Warn("the sandbox will not be listed by rootless-net ps: " + err.Error())
		return nil
	}
	r.dir = dir
	return err
}

// create makes the entry. The name is unique among the user's live sandboxes; empty means the short id.
func (r *stateRecord) create(name string) (err error) {
	if r.dir != nil {
		r.entry, err = r.dir.Create(name)
	}
	return err
}

// update changes the record.
func (r *stateRecord) update(f func(*state.Record)) error {
	if r.entry == nil {
		return nil
	}
	return r.entry.Update(f)
}

func (r *stateRecord) id() string {
	if r.entry == nil {
		return ""
	}
	return r.entry.ID()
}

func (r *stateRecord) name() string {
	if r.entry == nil {
		return ""
	}
	return r.entry.Name()
}

// shortID is the beginning of the id.
func (r *stateRecord) shortID() string {
	if r.entry == nil {
		return ""
	}
	return state.ShortID(r.entry.ID())
}

// close removes the entry.
func (r *stateRecord) close() error {
	if r.entry == nil {
		return nil
	}
	return r.entry.Close()
}

// describe fills in the record of a running sandbox.
func (s *sandbox) describe(r *state.Record) {
	p := s.current()
	r.Status = state.Running
	r.Command, r.Network = s.cfg.Argv, p.Network
	r.Labels = s.cfg.Labels
	if s.ns != nil {
		r.InitPID, r.NetNS = s.ns.InitPID(), s.ns.NetNS()
	}
	if t := s.target.ns; t != nil {
		r.Command, r.NetNS = []string{plan.NetworkAttach, t.String()}, t.Inode() // an attached agent process does not report its namespace
	}
	r.Hostname = p.Hostname
	switch {
	case p.Network == plan.ContainerPrefix:
		r.Network = plan.ContainerPrefix + s.joined.record.ID
		r.Hostname = s.joined.record.Hostname
	case r.Hostname == "" && p.Network == plan.NetworkHost:
		r.Hostname, _ = os.Hostname()
	case r.Hostname == "" && p.Network != plan.NetworkAttach:
		r.Hostname = s.record.shortID()
	}
	if !p.HasGateway() {
		return
	}
	r.Link, r.Interface, r.MAC = s.network.LinkInfo()
	r.Datapath, r.MTU = s.network.Datapath(), p.MTU
	r.Subnets, r.Gateways, r.Addresses = nil, nil, nil
	for _, g := range p.GuestPrefixes {
		r.Subnets, r.Addresses = append(r.Subnets, g.Masked()), append(r.Addresses, g.Addr())
		r.Gateways = append(r.Gateways, p.Addrs.GatewayOf(g.Addr()))
	}
	r.Ports = nil
	for _, port := range s.network.Ports() {
		r.Ports = append(r.Ports, port.String())
	}
}

// updateRecord writes what has changed; a failure is only logged.
func (s *sandbox) updateRecord() {
	if err := s.record.update(s.describe); err != nil {
		s.log.Warn("cannot update the state record of the sandbox", "err", err)
	}
}
