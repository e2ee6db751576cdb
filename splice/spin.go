package splice

import (
	"runtime"
	"time"
)

// spinTime is how long the loop looks again before it sleeps, while it is part of an exchange to and fro. To be woken costs
// 10 to 60 µs, for the one who wakes and for the one who is woken: with a look 1-byte round trips rise by half, and
// connects of many clients by a fifth (bench/splice.md). It is what an answer takes that comes at all soon.
const spinTime = 40 * time.Microsecond

// spinSoon is the same with the time it takes to be woken.
const spinSoon = 100 * time.Microsecond

// spinChain is how long turn may follow turn so. Then the loop goes by Go's poller, for the sake of all the other
// goroutines that wait there, the link's first of all, and of whoever wants to close the loop.
const spinChain = time.Millisecond

// spinner decides whether to look again: when the last event came soon after the turn before it. So a conversation that
// pauses costs one look in vain, and one with pauses, none.
type spinner struct {
	alone bool      // one processor: whoever could answer needs it
	since time.Time // when the loop last came from Go's poller
	ended time.Time // of the last turn
	soon  bool      // the one after it came soon
	bulk  bool      // this turn has moved bulk, which comes anyway
}

func newSpinner() spinner { return spinner{alone: runtime.NumCPU() == 1} }

// begin is called before a turn.
func (s *spinner) begin() {
	s.soon = time.Since(s.ended) < spinSoon
	s.bulk = false
}

// spin is called after a turn and returns the events of the next one, if they come soon.
func (l *Loop) spin() int {
	s := &l.spinner
	s.ended = time.Now()
	if s.alone || !s.soon || s.bulk || len(l.queue) > 0 || s.ended.Sub(s.since) > spinChain {
		return 0
	}
	for {
		if n := l.poll(uintptr(l.ep)); n > 0 {
			return n
		}
		if time.Since(s.ended) > spinTime {
			return 0
		}
	}
}
