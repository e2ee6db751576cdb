package dns

import "sync/atomic"

// Stats counts since New; the last three are of this moment.
type Stats struct {
	Queries        uint64 // messages from the guest
	Answers        uint64 // messages to the guest
	Local          uint64 // answered from the names we own
	Rejected       uint64 // answered with FORMERR, NOTIMP or REFUSED by us
	Unanswered     uint64 // answered with SERVFAIL because no upstream said anything
	Truncated      uint64 // cut by us to the client's size
	Malformed      uint64 // dropped: no header, or not a query
	InflightFull   uint64 // dropped: too many in flight
	ConnsRefused   uint64 // connections dropped: too many
	UpstreamErrors uint64 // attempts that failed without an answer
	Mismatched     uint64 // answers ignored: wrong ID or question
	Reloads        uint64 // changes of the host's file taken over

	Inflight int
	Conns    int
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
