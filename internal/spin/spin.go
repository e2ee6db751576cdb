package spin

import (
	"runtime"
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
)

// Group is everything that is waited for by those who take part in the same exchanges. Its methods may be called from any
// goroutine, and on nil, which is a Group that never spins.
type Group struct {
	ep   int
	base time.Time
	last atomic.Int64 // when a turn ended last, since base
}

// NewGroup returns nil where spinning is of no use.
func NewGroup() *Group {
	if runtime.NumCPU() == 1 {
		return nil
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil { // no descriptors: everything works, slower
		return nil
	}
	g := &Group{ep: ep, base: time.Now()}
	g.last.Store(-int64(time.Hour))
	return g
}

// Close must come after the last Wait and the last Remove.
func (g *Group) Close() {
	if g != nil {
		unix.Close(g.ep)
	}
}

// Add has everybody look at fd as well, which somebody reads from when it is ready.
func (g *Group) Add(fd int) {
	if g != nil {
		_ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
}

// Remove is the opposite. It is needed where a copy of fd may stay open: an epoll set keeps those.
func (g *Group) Remove(fd int) {
	if g != nil {
		_ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_DEL, fd, nil)
	}
}

// Ready says whether there is something for somebody. RawSyscall: it cannot block.
func (g *Group) Ready() bool {
	var e unix.EpollEvent
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(g.ep), uintptr(unsafe.Pointer(&e)), 1, 0, 0, 0)
	return errno == 0 && n > 0
}

// Member is one who waits. It belongs to one goroutine.
type Member struct {
	g    *Group
	spun bool // there was no turn since
	soon bool
	bulk bool
}

// Member adds one.
func (g *Group) Member() Member { return Member{g: g, spun: true} }

// Begin is called before a turn.
func (m *Member) Begin() {
	if m.g == nil {
		return
	}
	m.soon = m.g.now()-m.g.last.Load() < int64(soon)
	m.spun, m.bulk = false, false
}

// Bulk is called in a turn that moves what comes anyway.
func (m *Member) Bulk() { m.bulk = true }

// Wait is called once after each turn, when there is nothing more for this member. It looks for a while, if that
// promises anything, and returns whether there was something for somebody in the end: this member should try again, and
// sleep if it was for another. own, which may be nil, is asked first: whether there is something for this member.
func (m *Member) Wait(own func() bool) bool {
	if m.g == nil || m.spun {
		return false
	}
	m.spun = true
	begin := m.g.now()
	if m.bulk {
		return false
	}
	m.g.last.Store(begin)
	if !m.soon {
		return false
	}
	for {
		if own != nil && own() || m.g.Ready() {
			return true
		}
		if m.g.now()-begin > int64(Time) {
			return false
		}
	}
}

func (g *Group) now() int64 { return int64(time.Since(g.base)) }
