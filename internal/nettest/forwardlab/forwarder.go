package forwardlab

import (
	"testing"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
)

// Limit is the limit of descriptors of a test's own budget, large enough for every test that is not about the budget.
const Limit = 1 << 20

// uses are all uses of descriptors, with their names.
var uses = map[fdbudget.Use]string{fdbudget.Stack: "stack path", fdbudget.Splice: "splice path", fdbudget.UDP: "UDP", fdbudget.Relay: "relay", fdbudget.Listeners: "listeners"}

// Budget is a budget of the test's own. When the test has ended, and all of its later cleanups, everything must have been
// returned.
func Budget(t testing.TB, limit int64) *fdbudget.Budget {
	t.Helper()
	b := fdbudget.New(limit)
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() {
			return // a test that ended early leaves descriptors behind; its own failure is reported already
		}
		for u, name := range uses {
			Eventually(t, "the descriptors of the "+name+" are returned", func() bool { return b.Taken(u) == 0 })
		}
	})
	return b
}

// Taken is how many descriptors all uses of b hold.
func Taken(b *fdbudget.Budget) (n int) {
	for u := range uses {
		n += b.Taken(u)
	}
	return n
}

// NewForwarder returns a Forwarder with a Budget of the test's own, unless cfg has one.
func NewForwarder(t testing.TB, cfg forwarder.Config) *forwarder.Forwarder {
	t.Helper()
	if cfg.Budget == nil {
		cfg.Budget = Budget(t, Limit)
	}
	return forwarder.New(cfg)
}

// TCPStats are the values of forwarder.TCPCounters, and the other counters of a Forwarder, at one moment.
type TCPStats struct {
	Dialling                                                            int
	Outbound, Inbound, DialErrors, DialLimit, DialRetries, AcceptErrors uint64
	Refused                                                             map[string]uint64
}

// ReadTCP reads the counters of f.
func ReadTCP(f *forwarder.Forwarder) TCPStats {
	c := &f.TCP
	return TCPStats{Dialling: f.Attempts.Len(), Outbound: c.Outbound.Load(), Inbound: c.Inbound.Load(), DialErrors: c.DialErrors.Load(),
		DialLimit: c.DialLimit.Load(), DialRetries: c.DialRetries.Load(), AcceptErrors: c.AcceptErrors.Load(), Refused: f.Refused()}
}
