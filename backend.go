package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"rootlessnet/api"
	"rootlessnet/forwarder"
	"rootlessnet/internal/state"
)

// backend is what the control socket speaks for.
type backend sandbox

var _ api.Backend = (*backend)(nil)

var errNoPorts = errors.New("only a sandbox in bridge mode has ports")

func (b *backend) Inspect() api.Sandbox {
	s := (*sandbox)(b)
	var rec state.Record
	if s.entry == nil {
		s.describe(&rec)
	} else if stored, err := s.entry.Record(); err == nil {
		rec = stored
	} else {
		rec.ID, rec.Name = s.entry.ID(), s.entry.Name()
	}
	r := api.SandboxFromRecord(rec)
	r.Ports, r.PublishAll, r.HostLoopback = b.Ports(), s.plan.publishAll, s.plan.hostLoopback.text()
	if s.entry != nil {
		r.StateDir = s.entry.Path()
	}
	if s.net != nil {
		r.DNS = s.current().dnsAddresses()
	}
	s.mu.Lock()
	r.Members = s.members
	s.mu.Unlock()
	return r
}

func (h HostLoopback) text() string {
	if h.All {
		return "all"
	}
	words := make([]string, len(h.Ports))
	for i, p := range h.Ports {
		words[i] = strconv.Itoa(int(p))
	}
	return strings.Join(words, ",")
}

func (b *backend) Ports() []api.Port {
	if b.net == nil {
		return nil
	}
	return b.net.ports.list()
}

func (b *backend) AddPorts(_ context.Context, spec string) ([]api.Port, error) {
	if b.net == nil {
		return nil, api.Conflict(errNoPorts)
	}
	mappings, err := ParsePortSpec(spec)
	if err != nil {
		return nil, api.Invalid(err)
	}
	return b.addMappings(mappings)
}

func (b *backend) addMappings(mappings []PortMapping) ([]api.Port, error) {
	if b.net == nil {
		return nil, api.Conflict(errNoPorts)
	}
	if err := checkFree(mappings, b.net.ports.list()); err != nil {
		return nil, err
	}
	added, err := b.net.ports.add(mappings, false)
	if err != nil {
		return nil, api.Conflict(err)
	}
	list := make([]api.Port, len(added))
	for i, p := range added {
		list[i] = p.Port
	}
	b.recordPorts()
	return list, nil
}

func (b *backend) RemovePorts(_ context.Context, spec string) ([]api.Port, error) {
	if b.net == nil {
		return nil, api.Conflict(errNoPorts)
	}
	named, err := selectPorts(spec, b.net.ports.list())
	if err != nil {
		return nil, err
	}
	return b.removePorts(func(p api.Port) bool { return slices.Contains(named, p) }), nil
}

// AddMapping is part of api.Backend.
func (b *backend) AddMapping(_ context.Context, m api.Mapping) ([]api.Port, error) {
	return b.addMappings([]PortMapping{{Proto: m.Proto, HostIP: m.HostIP, HostPort: m.HostPort, HostPortEnd: m.HostPort,
		GuestIP: m.GuestIP, GuestPort: m.GuestPort}})
}

// RemoveMapping is part of api.Backend.
func (b *backend) RemoveMapping(_ context.Context, id int) ([]api.Port, error) {
	removed := b.removePorts(func(p api.Port) bool { return p.ID == id })
	if len(removed) == 0 {
		return nil, api.NotFound(fmt.Errorf("no port has the id %d", id))
	}
	return removed, nil
}

func (b *backend) removePorts(want func(api.Port) bool) []api.Port {
	if b.net == nil {
		return nil
	}
	removed := b.net.ports.remove(want)
	b.recordPorts()
	return removed
}

func (b *backend) recordPorts() {
	if err := (*sandbox)(b).update((*sandbox)(b).describe); err != nil {
		b.log.Warn("state not updated", "err", err)
	}
}

func (b *backend) Lease(kind api.LeaseKind) (release func(), err error) {
	return (*sandbox)(b).lease(kind)
}

// Stats gathers the counters of the whole data plane. Rx and Tx are the guest's.
func (b *backend) Stats() api.Stats {
	st := api.Stats{Read: time.Now().UTC(), Counters: map[string]uint64{}}
	g := b.net
	if g == nil {
		return st
	}
	d := g.dev.Stats()
	st.RxBytes, st.RxPackets, st.RxDropped = d.TxBytes, d.TxFrames, d.TxDropped
	st.TxBytes, st.TxPackets, st.TxDropped = d.RxBytes, d.RxFrames, d.RxDropped
	set := func(name string, n uint64) { st.Counters[name] = n }
	group := func(prefix string, m map[string]uint64) {
		for k, n := range m {
			st.Counters[prefix+k] += n
		}
	}
	t := g.streams.Stats()
	set("now.tcp.connections", uint64(t.Active))
	set("now.tcp.spliced", uint64(t.Spliced))
	set("now.tcp.dialling", uint64(t.Dialling))
	set("tcp.out", t.Outbound)
	set("tcp.in", t.Inbound)
	set("tcp.bytes-out", t.BytesToHost)
	set("tcp.bytes-in", t.BytesToGuest)
	set(api.CounterSplicedOut, t.SplicedToHost)
	set(api.CounterSplicedIn, t.SplicedToGuest)
	set("tcp.dial-errors", t.DialErrors)
	set("tcp.over-share", t.OverShare)
	set("tcp.starved", t.StarvedRetries)
	set("tcp.accept-errors", t.AcceptErrors)
	set("tcp.unanswered", t.Unanswered)
	set("tcp.strays", t.Strays)
	group("policy.", t.Refused)
	if lo := b.loopbacks.stats(); lo != (forwarder.LoopbackStats{}) {
		set("now.loopback.connections", uint64(lo.Active))
		set("now.loopback.flows", uint64(lo.Flows))
		set("loopback.connections", lo.Connections)
		set("loopback.refused", lo.Refused)
		set("loopback.datagrams", lo.Datagrams)
		set("drop.loopback.datagrams", lo.DroppedDatagrams)
	}
	u := g.grams.Stats()
	set("now.udp.flows", uint64(u.Flows))
	set("now.udp.sockets", uint64(u.Sockets))
	set("udp.packets-out", u.OutPackets)
	set("udp.packets-in", u.InPackets)
	set("udp.bytes-out", u.OutBytes)
	set("udp.bytes-in", u.InBytes)
	set("udp.evicted", u.Evicted)
	set("udp.icmp-errors", u.Errors)
	group("policy.", u.Denied)
	group("drop.udp.", u.Drops)
	k := g.stack.Stats()
	set("tcp.retransmits", k.TCPRetransmits)
	set("tcp.syn-dropped", k.TCPInFlightDrops)
	group("drop.frame.", k.Drops)
	q := g.resolver.Stats()
	set("dns.queries", q.Queries)
	set("dns.answers", q.Answers)
	set("dns.local", q.Local)
	set("dns.unanswered", q.Unanswered)
	set("dns.upstream-errors", q.UpstreamErrors)
	set("dns.dropped", q.Malformed+q.InflightFull+q.ConnsRefused)
	return st
}
