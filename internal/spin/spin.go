package spin

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Time is how long a look lasts. It is what an answer takes that comes at all soon.
	Time = 40 * time.Microsecond

	// soon is how far apart two turns of a Group may be in an exchange: Time, and that which waking takes.
	soon = 100 * time.Microsecond

	// chain is how long turn may follow turn before goroutines that can run do, and Go's poller has its chance: everybody who
	// is in no Group waits there. While there is always something for the one who looks it is Go's monitor that asks the poller,
	// every 10 ms.
	chain = time.Millisecond
)

// Group is everything that is waited for by those who take part in the same exchanges. Its methods may be called from any
// goroutine, and on nil, which is a Group that never looks.
type Group struct {
	ep   int
	base time.Time
	last atomic.Int64 // when a turn ended last, since base

	mu      sync.Mutex
	members []*Member // by the number in their events, nil where one has left; guarded by mu
}

// NewGroup returns nil where looking is of no use.
func NewGroup() *Group {
	if runtime.NumCPU() == 1 {
		return nil
	}
	g, err := newGroup()
	if err != nil { // no descriptors: everything works, slower
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
	g.last.Store(-int64(time.Hour))
	return g, nil
}

// Close must come after the last Run and the last Leave.
func (g *Group) Close() {
	if g != nil {
		unix.Close(g.ep)
	}
}

// look follows a turn of m. quick says that it came soon after another one.
func (g *Group) look(m *Member, did Did, quick bool) {
	if g == nil {
		return
	}
	start := g.turned()
	if did == Bulk || !quick {
		return
	}
	for begin := start; begin-start <= int64(chain); begin = g.turned() {
		if did == Handed {
			runtime.Gosched()
		}
		if did = m.try(); did == Nothing {
			m, did = g.await(m, begin)
		}
		if did != Some && did != Handed { // or he is at it, or in bulk, or it was a false alarm: Go's poller tells him
			return
		}
	}
	runtime.Gosched()
}

// await looks from begin on until something comes, and has the turn done. Most often it is for m again: to try that costs as
// much as to look, and less than to look first.
func (g *Group) await(m *Member, begin int64) (*Member, Did) {
	for {
		if other := g.ready(); other != nil {
			return other, other.try()
		}
		if g.now()-begin > int64(Time) {
			return m, Nothing
		}
		if did := m.try(); did != Nothing {
			return m, did
		}
	}
}

// turned notes that a turn has ended, and returns when.
func (g *Group) turned() int64 {
	now := g.now()
	g.last.Store(now)
	return now
}

// ready returns a Member for whom something is there. RawSyscall: it cannot block.
func (g *Group) ready() *Member {
	var e unix.EpollEvent
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(g.ep), uintptr(unsafe.Pointer(&e)), 1, 0, 0, 0)
	if errno != 0 || n == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[e.Fd]
}

func (g *Group) now() int64 { return int64(time.Since(g.base)) }
