package spin

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/lockrank"
)

// Result is what one run of a handler reports.
type Result int

const (
	// Idle: there was nothing to do. The caller of the handler goes on waiting.
	Idle Result = iota
	// Progress: the handler did one step of an exchange, and the next one is expected soon.
	Progress
	// Yield is Progress whose next step belongs to another goroutine, which was made runnable (by a channel, a go statement or
	// a wake-up): let it run before polling again.
	Yield
	// Bulk: the handler moved more than one message. More will follow without an answer being waited for, so busy polling
	// gains nothing.
	Bulk
	// Done: there will be nothing more to do. A handler that has returned Done must return it on every later run too.
	Done
)

// Member is one descriptor of a Group, with its handler. Its methods may be called from any goroutine.
type Member struct {
	g       *Group
	f       *os.File
	rc      syscall.RawConn
	fd      int
	id      int32 // index in g.members, and the data of the descriptor's events
	handler func() Result
	// blocking: the handler may block, so only Run runs it.
	blocking bool

	// Used by Run's goroutine alone.
	step   func(uintptr) bool // take, bound once to save an allocation for each wait
	result Result             // of the latest step
	recent bool               // the latest step came within exchangeGap of another handler run of the group

	mu     lockrank.Mutex // held while the handler runs
	joined bool           // the descriptor has been added to the group's epoll set; guarded by mu
	bulk   bool           // the latest run that was not Idle was Bulk; guarded by mu
	left   bool           // Leave was called; guarded by mu
}

// NewMember makes a Member for f, which remains the caller's to close, must be in non-blocking mode and without a read deadline,
// and counts as ready when epoll(7) reports EPOLLIN. handler does what there is to do without blocking. It is called by Run and,
// once Run has started, by any goroutine of the group that busy-polls; never by two at once. The only error is that f is closed.
func (g *Group) NewMember(f *os.File, handler func() Result) (*Member, error) {
	m := &Member{g: g, f: f, handler: handler}
	m.mu.SetRank(lockrank.SpinMember)
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

// NewBlockingMember is NewMember for a handler that may block: only Run calls it. Goroutines that busy-poll go to sleep when f
// becomes ready, which leaves the processor to Run's goroutine.
func (g *Group) NewBlockingMember(f *os.File, handler func() Result) (*Member, error) {
	m, err := g.NewMember(f, handler)
	if err == nil {
		m.blocking = true
	}
	return m, err
}

// join adds the descriptor to the group's epoll set, unless it is there already or the Member has left.
func (m *Member) join() error {
	if m.g == nil {
		return nil
	}
	return m.rc.Control(func(uintptr) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.joined && !m.left {
			m.joined = true
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
	// If this fails, busy polling does not cover f. Run is still woken by Go's poller.
	_ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_ADD, m.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: m.id})
}

func (g *Group) remove(m *Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Control fails if f is closed already: the number may belong to another file by now, and must not be touched.
	_ = m.rc.Control(func(uintptr) { _ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_DEL, m.fd, nil) })
	g.members[m.id] = nil
}

// FD returns the descriptor of f, for use in the handler.
func (m *Member) FD() int { return m.fd }

// Leave removes the Member from the group. It waits for a handler run that is under way; after it the handler is not called any
// more. It must be called before f is closed, because a duplicate of f would keep the descriptor in the epoll set, and must not
// be called by the handler. It may be called more than once.
func (m *Member) Leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left {
		return
	}
	m.left = true
	if m.joined {
		m.g.remove(m)
	}
}

// Run waits for f and runs the handler whenever f is ready, until the handler returns Done, for which Run returns nil, or until
// f is closed or fails, for which it returns the error. One goroutine may be in Run at a time. When Run has returned, other
// goroutines of the group may still run the handler until Leave.
func (m *Member) Run() error {
	if err := m.join(); err != nil {
		return err
	}
	for {
		err := m.rc.Read(m.step)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // by Wake
			if err = m.f.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		case err != nil:
			return err
		case m.result == Done:
			return nil
		default:
			m.g.busyPoll(m, m.result, m.recent)
		}
	}
}

// RunOnce runs the handler once, after waiting for a run that is under way. It returns Done after Leave.
func (m *Member) RunOnce() Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runLocked()
}

// take is Run's callback for syscall.RawConn.Read: it runs the handler, and returns false to wait for readiness.
func (m *Member) take(uintptr) bool {
	m.recent = m.g != nil && m.g.now()-m.g.last.Load() < int64(exchangeGap)
	m.result = m.RunOnce()
	return m.result != Idle
}

// Wake makes Run run the handler once more, whether or not f is ready. It uses the read deadline of f.
func (m *Member) Wake() { _ = m.f.SetReadDeadline(time.Unix(1, 0)) }

// tryHandler runs the handler on behalf of Run's goroutine. It returns Idle without running it if the handler may block, is being
// run, or is in bulk transfer.
func (m *Member) tryHandler() Result {
	if m.blocking || !m.mu.TryLock() {
		return Idle
	}
	defer m.mu.Unlock()
	if m.bulk {
		return Idle
	}
	result := m.runLocked()
	if result == Done { // the event behind it is consumed, so Go's poller may never wake Run's goroutine for it
		m.Wake()
	}
	return result
}

func (m *Member) runLocked() Result {
	if m.left {
		return Done
	}
	result := m.handler()
	if result != Idle {
		m.bulk = result == Bulk
	}
	return result
}
