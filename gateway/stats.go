package gateway

import (
	"maps"

	"rootlessnet/forwarder/loopback"
	"rootlessnet/forwarder/splicetcp"
)

// Names of the counters of bytes that the kernel moves on the splice path. They do not pass the link and are therefore not
// part of its bytes.
const (
	CounterSplicedIn  = "tcp.spliced-bytes-in"
	CounterSplicedOut = "tcp.spliced-bytes-out"
)

// Stats are the counters of the data plane since the start. Received and transmitted are seen from the guest.
type Stats struct {
	RxBytes, RxPackets, RxDropped uint64 // frames on the link
	TxBytes, TxPackets, TxDropped uint64
	// Counters has the counters of all parts by name; those that begin with "now." are gauges.
	Counters map[string]uint64
}

// Stats reads the counters. They are not read at one instant.
func (g *Gateway) Stats() Stats {
	d := g.dev.Stats()
	st := Stats{
		RxBytes: d.TxBytes, RxPackets: d.TxFrames, RxDropped: d.TxDropped,
		TxBytes: d.RxBytes, TxPackets: d.RxFrames, TxDropped: d.RxDropped,
		Counters: map[string]uint64{},
	}
	for _, read := range []func(counters){g.tcpStats, g.loopbackStats, g.datagramStats, g.stackStats, g.dnsStats} {
		read(st.Counters)
	}
	return st
}

type counters map[string]uint64

// group adds counters whose names get a prefix.
func (c counters) group(prefix string, m map[string]uint64) {
	for k, n := range m {
		c[prefix+k] += n
	}
}

func (g *Gateway) tcpStats(c counters) {
	own, spliced, t := g.tcp.Stats(), splicetcp.Stats{}, &g.forwarder.TCP
	if g.splice != nil {
		spliced = g.splice.Stats()
	}
	maps.Copy(c, counters{
		"now.tcp.connections": uint64(own.Active + spliced.Active),
		"now.tcp.spliced":     uint64(spliced.Active),
		"now.tcp.dialling":    uint64(g.forwarder.Attempts.Len()),
		"tcp.out":             t.Outbound.Load(),
		"tcp.in":              t.Inbound.Load(),
		"tcp.bytes-out":       own.BytesToHost + spliced.BytesToHost,
		"tcp.bytes-in":        own.BytesToGuest + spliced.BytesToGuest,
		CounterSplicedOut:     spliced.BytesToHost,
		CounterSplicedIn:      spliced.BytesToGuest,
		"tcp.dial-errors":     t.DialErrors.Load(),
		"tcp.dial-limit":      t.DialLimit.Load(),
		"tcp.dial-retries":    t.DialRetries.Load(),
		"tcp.accept-errors":   t.AcceptErrors.Load(),
		"tcp.reinject-failed": spliced.ReinjectFailed,
		"tcp.given-up":        spliced.GivenUp,
		"tcp.unmatched":       spliced.Unmatched,
	})
	c.group("policy.", g.forwarder.Refused())
}

func (g *Gateway) loopbackStats(c counters) {
	lo := g.forwards.stats()
	if lo == (loopback.Stats{}) {
		return
	}
	maps.Copy(c, counters{
		"now.loopback.connections": uint64(lo.Active),
		"now.loopback.flows":       uint64(lo.Flows),
		"loopback.connections":     lo.Connections,
		"loopback.refused":         lo.Refused,
		"loopback.datagrams":       lo.Datagrams,
		"drop.loopback.datagrams":  lo.DroppedDatagrams,
	})
}

func (g *Gateway) datagramStats(c counters) {
	u := g.udp.Stats()
	maps.Copy(c, counters{
		"now.udp.flows":   uint64(u.Flows),
		"now.udp.sockets": uint64(u.Sockets),
		"udp.packets-out": u.OutPackets,
		"udp.packets-in":  u.InPackets,
		"udp.bytes-out":   u.OutBytes,
		"udp.bytes-in":    u.InBytes,
		"udp.evicted":     u.Evicted,
		"udp.icmp-errors": u.Errors,
	})
	c.group("drop.udp.", u.Drops)
}

func (g *Gateway) stackStats(c counters) {
	k := g.stack.Stats()
	c["frame.group-reports"] = k.GroupReports
	c["tcp.retransmits"] = k.TCPRetransmits
	c["tcp.syn-dropped"] = k.TCPInFlightDrops
	c["now.tcp.buffers"] = k.TCPBuffers
	c["tcp.buffers-refused"] = k.TCPBufferRefused
	c["tcp.syn-limited"] = k.SYNLimited
	c.group("drop.frame.", k.Drops)
}

func (g *Gateway) dnsStats(c counters) {
	q := g.resolver.Stats()
	maps.Copy(c, counters{
		"dns.queries":         q.Queries,
		"dns.answers":         q.Answers,
		"dns.local":           q.Local,
		"dns.servfail":        q.Unanswered,
		"dns.upstream-errors": q.UpstreamErrors,
		"dns.dropped":         q.Malformed + q.InflightFull + q.ConnsRefused,
	})
}
