package splice

import "time"

// spinChain is how long turn may follow turn without Go's poller being asked in between: all the other goroutines wait
// there, and whoever wants to close the loop.
const spinChain = time.Millisecond

// spin is called after a turn and returns the events of the next one, if they come soon: 1-byte round trips rise by half,
// and connects of many clients by a fifth (bench/splice.md).
func (l *Loop) spin() int {
	if len(l.queue) > 0 || time.Since(l.since) > spinChain {
		return 0
	}
	l.found = 0
	l.member.Wait(l.look)
	return l.found
}
