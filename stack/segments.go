package stack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/waiter"
)

// Netstack counts what a send buffer holds by payload. But each write makes a segment, which takes segmentMemory however
// little it carries, and netstack does not join the segments of a guest that takes nothing. So segments are counted here, and
// their number is a grant of the budget as well (segmentBuf). Netstack does not tell how many a buffer holds, but whether it
// holds fewer bytes than its size: when as many segments as half of the grant have been written, those before them must be
// gone, which is the case if the buffer holds no more than the bytes written since. Otherwise nothing more is written until
// the guest has taken some of it. The data waits in the host's socket meanwhile, and the next write carries more of it.
//
// What the guest sends needs none of this: there netstack counts its segments.

const (
	// segmentMemory is what a segment of one byte takes, in bytes: measured by TestSegmentMemory, and rounded up.
	segmentMemory = 1 << 10
	// largeSegment is the payload of a segment that is not counted: its memory is a small part of the payload's.
	largeSegment = 8 * segmentMemory
	// leastSegments may be written in any case before the guest must have taken what came before.
	leastSegments = 4
	// tcpSegments is the largest grant, in bytes. A guest that reads a stream of single bytes without answering acknowledges
	// it every 40 ms (TCP_DELACK_MIN); so 1,000 segments carry some 10,000 writes a second without a pause.
	tcpSegments = 1 << 20
)

// sentSegments counts the segments of a send buffer.
type sentSegments struct {
	mu    sync.Mutex // held while data is written, so that sweepSegments sees no write
	n     int        // small ones since the mark
	bytes int64      // in all since the mark
	limit int        // of n: half of the grant

	marked  bool  // some were written before the mark
	drained bool  // the guest has taken some since the grant has grown
	stop    int64 // not 0: the send buffer's size for as long as nothing is written; guarded by connBuffers.mu as well
}

// setSegmentLimit follows a change of the grant. seg.mu and buf.mu are held, or the connection is new.
func (c *Conn) setSegmentLimit() {
	c.seg.limit = max(int(c.buf.grant[segmentBuf]/segmentMemory/2), leastSegments)
}

// admitSegment says whether one more segment may be written. If not, the connection becomes writable when the guest has taken some.
// seg.mu is held.
func (c *Conn) admitSegment() bool {
	s := &c.seg
	if s.n < s.limit || c.buf.budget == nil {
		return true
	}
	c.buf.mu.Lock()
	defer c.buf.mu.Unlock()
	if s.bytes >= c.buf.size[sendBuf] || c.holdsAtMost(s.bytes) {
		s.drained = s.drained || s.marked
		s.marked = true
		c.markSegments()
		return true
	}
	if grant := c.buf.grant[segmentBuf]; s.drained && grant < tcpSegments {
		if n := c.buf.budget.take(c, min(grant, tcpSegments-grant)); n > 0 {
			c.buf.grant[segmentBuf] += n
			c.setSegmentLimit()
			s.drained, s.stop = false, 0
			c.resize()
			return true
		}
	}
	// The size stays what holdsAtMost has set: netstack reports that less than half of it is left, and not before.
	s.stop = s.bytes + 1
	return false
}

// noteSegment counts a segment that was written. seg.mu is held.
func (c *Conn) noteSegment(bytes int64) {
	if bytes < largeSegment {
		c.seg.n++
	}
	c.seg.bytes += bytes
}

// holdsAtMost reports whether the send buffer holds no more than n bytes. It changes the buffer's size, which the caller must set
// again. seg.mu and buf.mu are held.
func (c *Conn) holdsAtMost(n int64) bool {
	c.ep.SocketOptions().SetSendBufferSize(n+1, false)
	return c.ep.Readiness(waiter.WritableEvents)&waiter.WritableEvents != 0
}

// markSegments begins to count anew. seg.mu and buf.mu are held.
func (c *Conn) markSegments() {
	c.seg.n, c.seg.bytes, c.seg.stop = 0, 0, 0
	c.resize()
}

// sweepSegments gives back the grant of a connection that holds nothing for the guest. seg.mu and buf.mu are held.
func (c *Conn) sweepSegments() {
	if c.buf.grant[segmentBuf] == c.buf.base[segmentBuf] {
		return
	}
	if c.holdsAtMost(0) {
		c.giveBackLocked(segmentBuf)
		c.setSegmentLimit()
		c.seg.drained, c.seg.marked = false, false
		c.markSegments()
	}
	c.resize()
	// A writer that waits may have missed that the buffer was drained, while its size was another one.
	c.wq.Notify(waiter.WritableEvents)
}
