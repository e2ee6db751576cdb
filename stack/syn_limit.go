package stack

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// A SYN costs this process and the host's kernel a connect, and an answer; a program inside can send 50,000 a second that it
// never completes, and established connections would starve beside them. So the receive path admits SYNs by token buckets,
// before anything else is done for them. A connection that is established gives its token back: programs that make
// connections are not limited, however many, only SYNs that come to nothing are. One that is dropped is sent again after a
// second.
const (
	// destSYNs is how many SYNs to one destination may be admitted at once and come to nothing, and destSYNPace the time after
	// which one more is admitted: a burst of 1,000 clients, each of which sends its SYN twice, passes.
	destSYNs    = 2048
	destSYNPace = 4 * time.Millisecond
	// allSYNs and allSYNPace are the same for all destinations together: a scanner of ports is as fast as that. Admitted SYNs
	// to destinations that refuse take a tenth of a processor.
	allSYNs    = maxInFlightSYN
	allSYNPace = time.Second / 1000
	// synBuckets is the number of buckets that destinations are hashed to.
	synBuckets = 256
)

// synLimit limits the SYNs that come to nothing. Its zero value with a seed is ready.
type synLimit struct {
	seed maphash.Seed

	mu   sync.Mutex
	all  tokenBucket             // guarded by mu
	dest [synBuckets]tokenBucket // guarded by mu
}

// tokenBucket is the time at which the bucket will be full again (the generic cell rate algorithm, ITU-T I.371), in
// nanoseconds of the stack's clock.
type tokenBucket int64

func (b *tokenBucket) has(now, pace time.Duration, most int) bool {
	return time.Duration(*b)-now <= pace*time.Duration(most-1)
}

func (b *tokenBucket) take(now, pace time.Duration) {
	*b = tokenBucket(max(time.Duration(*b), now) + pace)
}

// admit takes a token for a SYN. now is a monotonic time.
func (l *synLimit) admit(dst netip.AddrPort, now time.Duration) bool {
	i := maphash.Comparable(l.seed, dst) % synBuckets
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dest[i].has(now, destSYNPace, destSYNs) || !l.all.has(now, allSYNPace, allSYNs) {
		return false
	}
	l.dest[i].take(now, destSYNPace)
	l.all.take(now, allSYNPace)
	return true
}

// giveBack returns the token of a SYN whose connection has been established. A token more than was taken does no harm: a
// bucket holds no more than its size.
func (l *synLimit) giveBack(dst netip.AddrPort) {
	i := maphash.Comparable(l.seed, dst) % synBuckets
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dest[i] -= tokenBucket(destSYNPace)
	l.all -= tokenBucket(allSYNPace)
}

// admitSYN says whether anything is to be done for a SYN; it counts those that are dropped.
func (s *Stack) admitSYN(dst netip.AddrPort) bool {
	if s.synLimit.admit(dst, time.Since(s.born)) {
		return true
	}
	s.stats.synLimited.Add(1)
	return false
}

// Established says that the connection which q asked for stands, for the limit of SYNs that come to nothing.
func (q *SYN) Established() {
	if q.s != nil {
		q.s.synLimit.giveBack(q.Dst)
	}
}
