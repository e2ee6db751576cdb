package fdbudget

import (
	"sync"
	"testing"
)

// Whatever the uses request, they never hold more than the limit less the reserve.
func TestTheSumStaysBelowTheLimit(t *testing.T) {
	for _, limit := range []int64{16, 64, 256, 1024, 524288} {
		b := New(limit)
		held := 0
		for more := true; more; {
			more = false
			for u := range numUses {
				if b.Take(u, 2) {
					held += 2
					more = true
				}
			}
		}
		if int64(held) > limit-min(minReserve, limit/2) || held == 0 {
			t.Errorf("limit %d: %d were taken", limit, held)
		}
		for u := range numUses {
			if b.Taken(u) > b.Share(u) {
				t.Errorf("limit %d: use %d holds %d, more than its share of %d", limit, u, b.Taken(u), b.Share(u))
			}
		}
	}
}

func TestAShareIsNotExceededAlone(t *testing.T) {
	b := New(1024)
	n := 0
	for b.Take(UDP, 1) {
		n++
	}
	if n != b.Share(UDP) || n != 256 {
		t.Errorf("UDP took %d of 1024", n)
	}
	b.Give(UDP, 1)
	if !b.Take(UDP, 1) || b.Take(UDP, 1) {
		t.Error("what is given back can be taken once")
	}
}

func TestConcurrentUseEndsAtZero(t *testing.T) {
	b := New(64)
	var wg sync.WaitGroup
	for u := range numUses {
		wg.Go(func() {
			for range 1000 {
				if b.Take(u, 2) {
					b.Give(u, 2)
				}
			}
		})
	}
	wg.Wait()
	for u := range numUses {
		if b.Taken(u) != 0 {
			t.Errorf("use %d holds %d", u, b.Taken(u))
		}
	}
	if b.sum.Load() != 0 {
		t.Errorf("the sum is %d", b.sum.Load())
	}
}
