package netns

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/fdbudget"
)

// The pools of one sandbox may have sockets of every kind open. At any limit there are descriptors for a batch of each, and for
// the half that is left when the next batch is asked for.
func TestPoolShareIsForEveryKind(t *testing.T) {
	for _, limit := range []int64{1024, 4096, 65536, 524288} {
		share := fdbudget.New(limit).Share(fdbudget.Pool)
		if batch := min(maxBatch, share/batchShare+1); batch < min(firstBatch, int(limit)/64) || numKinds*batch*3/2 > share+numKinds*3/2 {
			t.Errorf("limit %d: %d kinds with batches of %d, of a share of %d", limit, numKinds, batch, share)
		}
	}
}

// A batch that the budget has cut short does not make the ones after it small.
func TestPoolBatchAfterAShortage(t *testing.T) {
	p := servedPool(t, PoolOptions{})
	drain := func() { // until the next batch has been asked for, and has arrived
		t.Helper()
		for got, end := 0, time.Now().Add(5*time.Second); got == 0; {
			if fd, err := p.GetUDP(false); err == nil {
				unix.Close(fd)
				got++
			} else if time.Now().After(end) {
				t.Fatal("no socket came")
			}
		}
	}
	size := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.idle[kindUDP4].batch
	}
	drain()
	before := size()
	b := fdbudget.Process()
	all := b.Share(fdbudget.Pool)
	b.TakeAnyway(fdbudget.Pool, all)
	for range 4 * before {
		drain()
	}
	b.Give(fdbudget.Pool, all)
	if after := size(); after < before {
		t.Errorf("batches of %d sockets before the shortage, and of %d after it", before, after)
	}
}
