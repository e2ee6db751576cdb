package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rootlessnet/api"
	"rootlessnet/internal/state"
	"rootlessnet/plan"
)

// backend serves the requests of the control socket. Safe for concurrent use.
type backend struct{ s *sandbox }

var _ api.Backend = (*backend)(nil)

// Inspect is part of api.Backend.
func (b *backend) Inspect() api.Sandbox {
	s := b.s
	var rec state.Record
	entry := s.record.entry
	if entry == nil {
		s.describe(&rec)
	} else if stored, err := entry.Record(); err == nil {
		rec = stored
	} else {
		rec.ID, rec.Name = entry.ID(), entry.Name()
	}
	r := api.SandboxFromRecord(rec)
	r.Ports, r.PublishAll, r.HostLoopback = b.Ports(), s.plan.PublishAll, loopbackText(s.plan.HostLoopback)
	if entry != nil {
		r.StateDir = entry.Path()
	}
	if s.network != nil {
		r.DNS = s.network.Plan().DNSAddresses()
	}
	r.Members = s.leases.count()
	return r
}

// loopbackText is h as the flag --host-loopback has it.
func loopbackText(h plan.HostLoopback) string {
	if h.All {
		return "all"
	}
	words := make([]string, len(h.Ports))
	for i, p := range h.Ports {
		words[i] = strconv.Itoa(int(p))
	}
	return strings.Join(words, ",")
}

// wirePorts are ports as the control socket sends them; nil stays nil.
func wirePorts(ports []plan.Port) []api.Port {
	if ports == nil {
		return nil
	}
	list := make([]api.Port, len(ports))
	for i, p := range ports {
		list[i] = api.Port(p)
	}
	return list
}

// Ports is part of api.Backend.
func (b *backend) Ports() []api.Port {
	if b.s.network == nil {
		return nil
	}
	return wirePorts(b.s.network.Ports())
}

// AddPorts is part of api.Backend.
func (b *backend) AddPorts(_ context.Context, spec string) ([]api.Port, error) {
	ports, err := b.s.addSpec(spec)
	return wirePorts(ports), err
}

// RemovePorts is part of api.Backend.
func (b *backend) RemovePorts(_ context.Context, spec string) ([]api.Port, error) {
	ports, err := b.s.removeSpec(spec)
	return wirePorts(ports), err
}

// AddMapping is part of api.Backend.
func (b *backend) AddMapping(_ context.Context, m api.Mapping) ([]api.Port, error) {
	ports, err := b.s.addMappings([]plan.PortMapping{{Proto: m.Proto, HostIP: m.HostIP, HostPort: m.HostPort, HostPortEnd: m.HostPort,
		GuestIP: m.GuestIP, GuestPort: m.GuestPort}})
	return wirePorts(ports), err
}

// RemoveMapping is part of api.Backend.
func (b *backend) RemoveMapping(_ context.Context, id int) ([]api.Port, error) {
	ports, err := b.s.removeMapping(id)
	return wirePorts(ports), err
}

// Lease is part of api.Backend.
func (b *backend) Lease(kind api.LeaseKind) (release func(), err error) { return b.s.leases.take(kind) }

var errNoCommand = errors.New("the sandbox has no command that runs")

// Kill is part of api.Backend.
func (b *backend) Kill(sig syscall.Signal) error {
	if b.s.plan.Network == plan.NetworkAttach || b.s.ns == nil {
		return api.Conflict(errNoCommand)
	}
	if err := b.s.ns.Signal(sig); err != nil {
		return api.Conflict(fmt.Errorf("%w: %w", errNoCommand, err))
	}
	return nil
}

// Rename is part of api.Backend.
func (b *backend) Rename(name string) error {
	if err := plan.CheckName(name); err != nil {
		return api.Invalid(err)
	}
	if b.s.record.entry == nil {
		return api.Conflict(errors.New("the sandbox has no state directory"))
	}
	err := b.s.record.entry.Rename(name)
	if errors.Is(err, state.ErrNameInUse) || errors.Is(err, state.ErrNotFound) {
		return api.Conflict(err)
	}
	return err
}

// Stats is part of api.Backend.
func (b *backend) Stats() api.Stats {
	st := api.Stats{Read: time.Now().UTC(), Counters: map[string]uint64{}}
	if b.s.network == nil {
		return st
	}
	g := b.s.network.Stats()
	st.RxBytes, st.RxPackets, st.RxDropped = g.RxBytes, g.RxPackets, g.RxDropped
	st.TxBytes, st.TxPackets, st.TxDropped = g.TxBytes, g.TxPackets, g.TxDropped
	st.Counters = g.Counters
	return st
}
