package lockrank

import "testing"

// hold calls f with the lock held.
func hold(m *Mutex, f func()) {
	m.Lock()
	defer m.Unlock()
	f()
}

func TestOrder(t *testing.T) {
	panicWhenViolated(t)
	var outer, inner, free Mutex
	outer.SetRank(UDPTable)
	inner.SetRank(FlowTable)
	nothing := func() {}
	// The right order, with an unranked lock anywhere.
	hold(&free, func() { hold(&outer, func() { hold(&inner, func() { hold(new(Mutex), nothing) }) }) })

	wrong := func() (panicked bool) {
		defer func() { panicked = recover() != nil }()
		hold(&inner, func() { hold(&outer, nothing) })
		return false
	}
	if got := wrong(); got != Checked {
		t.Errorf("the wrong order panics: %v; this build checks: %v", got, Checked)
	}
	hold(&outer, nothing) // what a panic has left is not held
	hold(&inner, func() {
		if inner.TryLock() {
			t.Error("a lock was taken twice")
		}
	})
}

func TestEveryRankHasAName(t *testing.T) {
	for r := range numRanks {
		if r.String() == "" {
			t.Errorf("rank %d has no name", int(r))
		}
	}
}
