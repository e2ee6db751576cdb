package forwarder

import (
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"

	"rootlessnet/flow"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/spin"
	"rootlessnet/policy"
)

// Config describes a Forwarder. Its zero value is usable.
type Config struct {
	// Flows is the table of live flows; nil means one of its own.
	Flows *flow.Table
	// Budget are the descriptors that may be taken; nil means the process's.
	Budget *fdbudget.Budget
	// Spin is the group that listeners and connections busy-poll with; nil: nothing busy-polls.
	Spin *spin.Group
	// Logger; nil discards.
	Logger *slog.Logger
}

// Forwarder is what the datapaths of one gateway share: the endpoints and their rules, the table of flows, the bounds on
// attempts and descriptors, and the counters of TCP. Safe for concurrent use.
type Forwarder struct {
	Flows    *flow.Table
	Budget   *fdbudget.Budget
	Spin     *spin.Group
	Log      *slog.Logger
	Attempts *Attempts
	TCP      TCPCounters

	rules   atomic.Uint64 // counts the changes of rules, addresses and endpoints, see Rejudge
	refused [policy.NumReasons]atomic.Uint64

	mu        sync.Mutex // held while endpoints are replaced
	endpoints atomic.Pointer[map[flow.Endpoint]*Endpoint]
}

// New returns a Forwarder without endpoints: it refuses everything.
func New(cfg Config) *Forwarder {
	f := &Forwarder{Flows: cfg.Flows, Budget: cfg.Budget, Spin: cfg.Spin, Log: cfg.Logger}
	if f.Flows == nil {
		f.Flows = flow.NewTable()
	}
	if f.Budget == nil {
		f.Budget = fdbudget.Process()
	}
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	// Destinations that do not answer must not take every descriptor: as many attempts as the splice path may have connections.
	f.Attempts = newAttempts(min(MaxAttempts, f.Budget.Share(fdbudget.Splice)/2))
	f.endpoints.Store(&map[flow.Endpoint]*Endpoint{})
	return f
}

// AddEndpoint adds an endpoint, or replaces the one with its ID.
func (f *Forwarder) AddEndpoint(cfg EndpointConfig) *Endpoint {
	e := newEndpoint(cfg)
	f.changeEndpoints(func(m map[flow.Endpoint]*Endpoint) { m[cfg.ID] = e })
	return e
}

// RemoveEndpoint removes an endpoint and ends its flows.
func (f *Forwarder) RemoveEndpoint(id flow.Endpoint) {
	f.changeEndpoints(func(m map[flow.Endpoint]*Endpoint) { delete(m, id) })
	f.Flows.KillIf(func(i *flow.Info) bool { return i.Key.Endpoint == id })
}

func (f *Forwarder) changeEndpoints(change func(map[flow.Endpoint]*Endpoint)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := maps.Clone(*f.endpoints.Load())
	change(m)
	f.endpoints.Store(&m)
	f.rules.Add(1) // what was decided before is decided again when it is added to the table, see StillAllowed
}

// Endpoint is the endpoint with the given ID; nil: there is none.
func (f *Forwarder) Endpoint(id flow.Endpoint) *Endpoint { return (*f.endpoints.Load())[id] }

// Refused counts the refused flows and datagrams since New, by the policy's reason; those without any are left out.
func (f *Forwarder) Refused() map[string]uint64 {
	m := map[string]uint64{}
	for r := range f.refused {
		if n := f.refused[r].Load(); n > 0 {
			m[policy.Reason(r).String()] = n
		}
	}
	return m
}
