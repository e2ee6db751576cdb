package lockrank

import "testing"

func TestOrder(t *testing.T) {
	var outer, inner, free Mutex
	outer.SetRank(UDPTable)
	inner.SetRank(FlowTable)
	// The right order, with an unranked lock anywhere.
	free.Lock()
	outer.Lock()
	inner.Lock()
	inner.Unlock()
	outer.Unlock()
	free.Unlock()

	wrong := func() (panicked bool) {
		defer func() { panicked = recover() != nil }()
		inner.Lock()
		defer inner.Unlock()
		outer.Lock()
		outer.Unlock()
		return false
	}
	if got := wrong(); got != Checked {
		t.Errorf("the wrong order panics: %v; this build checks: %v", got, Checked)
	}
	// What a panic has left must not be held.
	outer.Lock()
	outer.Unlock()
	inner.Lock()
	if inner.TryLock() {
		t.Error("a lock was taken twice")
	}
	inner.Unlock()
}

func TestEveryRankHasAName(t *testing.T) {
	for r := range numRanks {
		if r.String() == "" {
			t.Errorf("rank %d has no name", int(r))
		}
	}
}
