package spin

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Did is what a turn found to do.
type Did int

const (
	Nothing Did = iota // and whoever waits goes on waiting
	Some               // a step of an exchange
	Handed             // the same, and other goroutines go on with it: they come before the next look
	Bulk               // more than that: it comes anyway, in larger pieces to one who sleeps
	Over               // the last there was: said again if it is asked again
)

// Member is one who waits for a descriptor. Its methods may be called from any goroutine.
type Member struct {
	g    *Group
	f    *os.File
	rc   syscall.RawConn
	fd   int
	id   int32
	turn func() Did
	// alone: turn may wait for something, and only Run does it.
	alone bool

	// Run's own.
	step  func(uintptr) bool // take, bound once
	did   Did                // in the last step
	quick bool               // and it came soon after another turn

	mu   sync.Mutex // held during a turn
	in   bool       // the group sees f, or did; guarded by mu
	bulk bool       // the last turn was; guarded by mu
	left bool       // guarded by mu
}

// Member makes one of whoever waits for f, which stays the caller's, must be non-blocking and is ready when epoll(7) says
// EPOLLIN. turn does what there is to do, without waiting. It is called by Run, and from then on by those of the group who look,
// never twice at once. The error says that f is closed.
func (g *Group) Member(f *os.File, turn func() Did) (*Member, error) {
	m := &Member{g: g, f: f, turn: turn}
	m.step = m.take
	var err error
	if m.rc, err = f.SyscallConn(); err != nil {
		return nil, err
	}
	if err = m.rc.Control(func(fd uintptr) { m.fd = int(fd) }); err != nil {
		return nil, err
	}
	return m, nil
}

// Alone is Member for a turn that may wait for something: only Run does it, and those who look sleep when f is ready.
func (g *Group) Alone(f *os.File, turn func() Did) (*Member, error) {
	m, err := g.Member(f, turn)
	if err == nil {
		m.alone = true
	}
	return m, err
}

// enter has those who look see f.
func (m *Member) enter() error {
	if m.g == nil {
		return nil
	}
	return m.rc.Control(func(uintptr) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.in && !m.left {
			m.in = true
			m.g.add(m)
		}
	})
}

func (g *Group) add(m *Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for int(m.id) < len(g.members) && g.members[m.id] != nil {
		m.id++
	}
	if int(m.id) == len(g.members) {
		g.members = append(g.members, nil)
	}
	g.members[m.id] = m
	// Where this fails nobody looks at f: slower, that is all.
	_ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_ADD, m.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: m.id})
}

func (g *Group) remove(m *Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Where f is closed already the number may be somebody else's.
	_ = m.rc.Control(func(uintptr) { _ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_DEL, m.fd, nil) })
	g.members[m.id] = nil
}

// FD is that of the file given to Member, for turns.
func (m *Member) FD() int { return m.fd }

// Leave ends turns: it waits for one that is being done, and Run will do no more. It must come before f is closed, as a copy
// may stay open, and must not be called in a turn. It may be called more than once.
func (m *Member) Leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left {
		return
	}
	m.left = true
	if m.in {
		m.g.remove(m)
	}
}

// Run does turns until one says Over, which returns nil, or f is closed, before or meanwhile, or has failed. It is for one
// goroutine at a time. After it the others may still do turns, until Leave.
func (m *Member) Run() error {
	if err := m.enter(); err != nil {
		return err
	}
	for {
		err := m.rc.Read(m.step)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // Wake
			if err = m.f.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		case err != nil:
			return err
		case m.did == Over:
			return nil
		default:
			m.g.look(m, m.did, m.quick)
		}
	}
}

// Turn does a turn, as Run would.
func (m *Member) Turn() Did {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.doLocked()
}

// take is called when f may have something. It returns whether Run need not wait.
func (m *Member) take(uintptr) bool {
	m.quick = m.g != nil && m.g.now()-m.g.last.Load() < int64(soon)
	m.did = m.Turn()
	return m.did != Nothing
}

// Wake has Run do a turn, though f may say nothing. f must have no deadline of its own.
func (m *Member) Wake() { _ = m.f.SetReadDeadline(time.Unix(1, 0)) }

// try does the turn for Run, unless it is being done, or would take long.
func (m *Member) try() Did {
	if m.alone || !m.mu.TryLock() {
		return Nothing
	}
	defer m.mu.Unlock()
	if m.bulk {
		return Nothing
	}
	did := m.doLocked()
	if did == Over { // which f may have told once
		m.Wake()
	}
	return did
}

func (m *Member) doLocked() Did {
	if m.left {
		return Over
	}
	did := m.turn()
	if did != Nothing {
		m.bulk = did == Bulk
	}
	return did
}
