package splice

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/spin"
)

const (
	// maxEvents are taken from the kernel at once. More would only make the first of them wait for the last.
	maxEvents = 64

	// scratchSize is the Loop's buffer: what fills it is bulk, and goes through a pipe from then on.
	scratchSize = 64 << 10

	// tickPace is how often connections that are half closed are looked at.
	tickPace = 5 * time.Second
)

// Handler gets the events of a descriptor watched by a Loop.
type Handler interface {
	// Ready is called in the loop's turn with the bits of epoll(7). It must not block.
	Ready(events uint32)
}

// Loop is one event loop. Its methods may be called from any goroutine.
type Loop struct {
	log    *slog.Logger
	ep     int
	f      *os.File // owns ep
	member *spin.Member
	due    atomic.Bool // the tick is

	mu     sync.Mutex
	slots  []slot             // guarded by mu
	free   []int32            // guarded by mu
	pairs  map[*Pair]struct{} // guarded by mu
	ticker *time.Timer        // not nil while the tick is armed; guarded by mu
	closed bool               // guarded by mu

	// Of the turn.
	events  [maxEvents]unix.EpollEvent
	queue   []*Pair // with work left after their turn
	scratch []byte
	pipes   pipePool
	halves  map[*Pair]struct{} // half closed, not under keep-alive yet
	naps    napper
	bulk    bool // it moved what comes anyway

	done chan struct{}
}

// slot is one watched descriptor. gen tells an event of the descriptor that was in the slot before from one of this.
type slot struct {
	h   Handler
	gen uint32
}

// NewLoop starts a loop. log may be nil, and so may group, whose exchanges the loop takes part in: any of the group may
// do its turns.
func NewLoop(log *slog.Logger, group *spin.Group) (*Loop, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // what makes os.File give it to the netpoller
		unix.Close(ep)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &Loop{log: log, ep: ep, f: os.NewFile(uintptr(ep), "epoll"), pairs: map[*Pair]struct{}{},
		scratch: make([]byte, scratchSize), pipes: newPipePool(), halves: map[*Pair]struct{}{}, done: make(chan struct{})}
	l.naps = napper{loop: l, fd: -1}
	if l.member, err = group.NewMember(l.f, l.turn); err != nil {
		l.f.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go l.run()
	return l, nil
}

// Close resets every pair and waits for the goroutine. Handlers get no event after it.
func (l *Loop) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return
	}
	l.closed = true
	if l.ticker != nil {
		l.ticker.Stop()
	}
	l.mu.Unlock()
	l.member.Leave()
	_ = l.f.Close()
	<-l.done
}

// Watch has h called when fd, which stays the caller's, is ready. events are those of epoll_ctl(2). The token is for
// Rearm and Unwatch.
func (l *Loop) Watch(fd int, events uint32, h Handler) (token int32, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, net.ErrClosed
	}
	token, gen := l.claimLocked(h)
	if err := l.control(unix.EPOLL_CTL_ADD, fd, events, token, gen); err != nil {
		l.releaseLocked(token)
		return 0, err
	}
	return token, nil
}

// Rearm sets other events for a descriptor that is watched.
func (l *Loop) Rearm(fd int, events uint32, token int32) error { return l.rearm(fd, events, token) }

func (l *Loop) rearm(fd int, events uint32, token int32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed { // and the number of the epoll set somebody else's
		return net.ErrClosed
	}
	return l.control(unix.EPOLL_CTL_MOD, fd, events, token, l.slots[token].gen)
}

// Unwatch ends a Watch. fd must be open still.
func (l *Loop) Unwatch(fd int, token int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		_ = l.control(unix.EPOLL_CTL_DEL, fd, 0, 0, 0)
	}
	l.releaseLocked(token)
}

func (l *Loop) claimLocked(h Handler) (token int32, gen uint32) {
	if n := len(l.free); n > 0 {
		token = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		token = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	l.slots[token].h = h
	return token, l.slots[token].gen
}

func (l *Loop) releaseLocked(token int32) {
	s := &l.slots[token]
	s.h, s.gen = nil, s.gen+1
	l.free = append(l.free, token)
}

func (l *Loop) control(op, fd int, events uint32, token int32, gen uint32) error {
	e := unix.EpollEvent{Events: events, Fd: token, Pad: int32(gen)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// poll takes what is ready, without waiting. RawSyscall: it cannot block.
func (l *Loop) poll() int {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, 0, 0, 0)
		switch errno {
		case 0:
			return int(n)
		case unix.EINTR:
		default:
			return 0
		}
	}
}

// run is the loop's goroutine, which does its turns when nobody of the group does. It sleeps in Go's own poller, in which
// the epoll set is one more descriptor: whatever thread finds it ready goes on here, without waking another.
func (l *Loop) run() {
	defer close(l.done)
	defer l.end()
	_ = l.member.Run() // until Close
	l.member.Leave()
}

// turn handles what is ready, and each pair that had work left.
func (l *Loop) turn() spin.Result {
	if l.due.Swap(false) {
		l.tick()
	}
	n := l.poll()
	if n == 0 && len(l.queue) == 0 {
		return spin.Idle
	}
	l.bulk = false
	l.handle(n)
	if len(l.queue) > 0 { // of which no descriptor tells
		l.bulk = true
		l.member.Wake()
	}
	if l.bulk {
		return spin.Bulk
	}
	return spin.Progress
}

// handle handles n events, and then once each pair that had work left.
func (l *Loop) handle(n int) {
	for i := range l.events[:n] {
		e := &l.events[i]
		l.mu.Lock()
		s := l.slots[e.Fd]
		l.mu.Unlock()
		if s.h != nil && s.gen == uint32(e.Pad) {
			l.call(s.h, e.Events)
		}
	}
	for range len(l.queue) {
		p := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		p.queued = false
		l.call(p, 0)
	}
	if len(l.queue) == 0 {
		l.queue = nil
	}
}

// call makes a panic cost one connection, not the data plane.
func (l *Loop) call(h Handler, events uint32) {
	defer func() {
		if e := recover(); e != nil {
			l.log.Error("panic in a connection", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
			if s, ok := h.(*side); ok {
				s.pair.abort()
			} else if p, ok := h.(*Pair); ok {
				p.abort()
			}
		}
	}()
	h.Ready(events)
}

// again gives p another turn after the others.
func (l *Loop) again(p *Pair) {
	if !p.queued {
		p.queued = true
		l.queue = append(l.queue, p)
	}
}

// halfClosed notes that one direction of p has ended.
func (l *Loop) halfClosed(p *Pair) {
	p.halfSince = time.Now()
	l.halves[p] = struct{}{}
	l.mu.Lock()
	l.armTickLocked()
	l.mu.Unlock()
}

// tick does for connections what is for those that last: keep-alive, and a faster one where one direction has ended.
// Most end before, and the calls would be for nothing.
func (l *Loop) tick() {
	l.mu.Lock()
	l.ticker = nil
	var young []*Pair
	for p := range l.pairs {
		if !p.tuned {
			p.tuned = true
			young = append(young, p)
		}
	}
	l.mu.Unlock()
	for _, p := range young {
		p.tune()
	}
	now := time.Now()
	for p := range l.halves {
		if now.Sub(p.halfSince) >= tickPace {
			p.expectDeath()
			delete(l.halves, p)
		}
	}
	if len(l.halves) > 0 {
		l.mu.Lock()
		l.armTickLocked()
		l.mu.Unlock()
	}
}

// armTickLocked has the tick come, once.
func (l *Loop) armTickLocked() {
	if l.ticker == nil && !l.closed {
		l.ticker = time.AfterFunc(tickPace, func() {
			l.due.Store(true)
			l.member.Wake()
		})
	}
}

// end runs when the loop is closed.
func (l *Loop) end() {
	l.mu.Lock()
	l.closed = true
	var left []*Pair
	for p := range l.pairs {
		left = append(left, p)
	}
	l.mu.Unlock()
	for _, p := range left {
		p.abort()
	}
	l.pipes.close()
	l.naps.close()
}
