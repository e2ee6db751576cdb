package spin

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/lockrank"
)

const (
	// pollTime is how long a busy-poll goes on without an event. A peer on the same machine that answers at once does so
	// within this time.
	pollTime = 40 * time.Microsecond

	// exchangeGap is the longest time between two handler runs of a Group for them to count as the same exchange: pollTime plus
	// the time that waking a sleeping thread takes.
	exchangeGap = 100 * time.Microsecond

	// maxPoll is the longest time a goroutine busy-polls in a row, handler runs included. After it the goroutine yields, so that
	// runnable goroutines run and an idle processor polls Go's network poller, on which everything outside the Group depends.
	// Without this limit Go's monitor thread would be the only one to poll it, every 10 ms.
	maxPoll = time.Millisecond
)

// Group is an epoll set of all descriptors that take part in the same exchanges. Its methods may be called from any goroutine,
// and on a nil *Group, which never busy-polls.
type Group struct {
	ep   int          // the epoll set; the data of each event is Member.id
	base time.Time    // origin of all times below, which are monotonic nanoseconds
	last atomic.Int64 // when the latest handler run of the group ended

	mu      lockrank.Mutex
	members []*Member // by Member.id; nil for an id that is free; guarded by mu
}

// NewGroup returns nil, a Group without busy polling, on a machine with one processor or when no epoll set can be created.
func NewGroup() *Group {
	if runtime.NumCPU() == 1 {
		return nil
	}
	g, err := newGroup()
	if err != nil { // the descriptor limit is reached: work without busy polling
		return nil
	}
	return g
}

func newGroup() (*Group, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	g := &Group{ep: ep, base: time.Now()}
	g.mu.SetRank(lockrank.SpinGroup)
	g.last.Store(-int64(time.Hour)) // no earlier run to be close to
	return g, nil
}

// Close releases the epoll set. Every Run must have returned, and every Member must have left.
func (g *Group) Close() {
	if g != nil {
		unix.Close(g.ep)
	}
}

// busyPoll is called after m's handler has run with the given result. recent is set if the run came within exchangeGap of another
// one of the group. It polls the group's members and runs the handlers of those that are ready, until nothing happens for
// pollTime, a handler reports bulk transfer, or maxPoll has passed.
func (g *Group) busyPoll(m *Member, result Result, recent bool) {
	if g == nil {
		return
	}
	start := g.noteRun()
	if result == Bulk || !recent {
		return
	}
	for begin := start; begin-start <= int64(maxPoll); begin = g.noteRun() {
		if result == Yield {
			runtime.Gosched()
		}
		if result = m.tryHandler(); result == Idle {
			m, result = g.pollUntil(m, begin)
		}
		if result != Progress && result != Yield {
			// Idle covers a member that another goroutine is serving, one in bulk transfer, and an event that was handled already. In
			// all these cases, and for Bulk and Done, the member's own goroutine goes on.
			return
		}
	}
	runtime.Gosched()
}

// pollUntil polls until pollTime after begin. It returns the member whose handler it ran, with the result. The next event is most
// often for m again, and running m's handler costs no more than polling epoll, so each round tries that as well.
func (g *Group) pollUntil(m *Member, begin int64) (*Member, Result) {
	for {
		if other := g.readyMember(); other != nil {
			return other, other.tryHandler()
		}
		if g.now()-begin > int64(pollTime) {
			return m, Idle
		}
		if result := m.tryHandler(); result != Idle {
			return m, result
		}
	}
}

// noteRun records that a handler run ends now, and returns the time.
func (g *Group) noteRun() int64 {
	now := g.now()
	g.last.Store(now)
	return now
}

// readyMember returns a member whose descriptor is ready, or nil. The epoll_pwait has a timeout of 0 and so cannot block, which
// is why it need not be announced to Go's scheduler (RawSyscall).
func (g *Group) readyMember() *Member {
	var e unix.EpollEvent
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(g.ep), uintptr(unsafe.Pointer(&e)), 1, 0, 0, 0)
	if errno != 0 || n == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[e.Fd]
}

// now returns monotonic nanoseconds since the Group was created.
func (g *Group) now() int64 { return int64(time.Since(g.base)) }
