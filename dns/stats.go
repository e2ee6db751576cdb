package dns

import "sync/atomic"

// Stats are counters since New; the last three are current values.
type Stats struct {
	Queries        uint64 // messages from the guest
	Answers        uint64 // messages to the guest
	Local          uint64 // answered from Config.Names or as localhost
	Rejected       uint64 // answered by the resolver itself with FORMERR, NOTIMP or REFUSED
	Unanswered     uint64 // answered with SERVFAIL because no upstream answered
	Truncated      uint64 // truncated by the resolver because the client accepts no more
	Malformed      uint64 // dropped: shorter than a header, or not a query
	InflightFull   uint64 // dropped: maxInflight queries in flight
	ConnsRefused   uint64 // connections closed at once: maxTCPConns were open
	UpstreamErrors uint64 // attempts that failed without an answer
	Mismatched     uint64 // answers of upstreams ignored: wrong ID or question
	Reloads        uint64 // changes of the host's resolv.conf

	Inflight int // queries in flight
	Conns    int // TCP connections
	Servers  int // upstreams
}

type counters struct {
	queries, answers, local, rejected, unanswered, truncated atomic.Uint64
	malformed, inflightFull, connsRefused                    atomic.Uint64
	upstreamErrors, mismatched, reloads                      atomic.Uint64
}

// Stats returns the counters.
func (r *Resolver) Stats() Stats {
	c := &r.stats
	return Stats{
		Queries:        c.queries.Load(),
		Answers:        c.answers.Load(),
		Local:          c.local.Load(),
		Rejected:       c.rejected.Load(),
		Unanswered:     c.unanswered.Load(),
		Truncated:      c.truncated.Load(),
		Malformed:      c.malformed.Load(),
		InflightFull:   c.inflightFull.Load(),
		ConnsRefused:   c.connsRefused.Load(),
		UpstreamErrors: c.upstreamErrors.Load(),
		Mismatched:     c.mismatched.Load(),
		Reloads:        c.reloads.Load(),
		Inflight:       len(r.inflight),
		Conns:          len(r.conns),
		Servers:        len(r.current.Load().servers),
	}
}
