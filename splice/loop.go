package splice

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/spin"
)

const (
	// maxEvents is how many events are fetched from the kernel at once. The pair of the first event waits for its next service
	// until those of all others have been served, so a larger batch would only add latency.
	maxEvents = 64

	// scratchSize is the size in bytes of the Loop's copy buffer. A read that fills it counts as bulk, which from then on goes
	// through a pipe.
	scratchSize = 64 << 10

	// tickInterval is how often new and half-closed pairs are checked for their keep-alive settings.
	tickInterval = 5 * time.Second
)

// Handler receives the events of a descriptor watched by a Loop.
type Handler interface {
	// Ready is called by the goroutine that runs the Loop, with the event bits of epoll_wait(2). It must not block.
	Ready(events uint32)
}

// Loop is one event loop. Its methods may be called from any goroutine, and from handlers, except that a handler must not call
// Close.
type Loop struct {
	log     *slog.Logger
	ep      int
	f       *os.File // owns ep
	member  *spin.Member
	killing atomic.Bool // killed is not empty
	tickDue atomic.Bool // the timer has fired and the next handler run calls tick

	mu     lockrank.Mutex
	slots  []slot             // by token; guarded by mu
	free   []int32            // tokens of unused slots; guarded by mu
	pairs  map[*Pair]struct{} // guarded by mu
	killed []*Pair            // pairs that the next handler run resets; guarded by mu
	ticker *time.Timer        // nil unless the timer of the next tick is running; guarded by mu
	closed bool               // guarded by mu

	// Used by the handler run alone, which is never done by two goroutines at once.
	events     [maxEvents]unix.EpollEvent
	queue      []*Pair // pairs that used up their budget and have more to move
	scratch    []byte
	pipes      pipePool
	halfClosed map[*Pair]struct{} // half-closed pairs that still have the default keep-alive time
	moderation moderator
	movedBulk  bool // this run moved bulk data

	done chan struct{}
}

// slot is one watched descriptor. gen distinguishes its events from those of the descriptor that had the slot before.
type slot struct {
	h   Handler
	gen uint32
}

// NewLoop starts a loop. A nil log discards. group may be nil; otherwise the loop's handlers may be run by any goroutine of the
// group that busy-polls.
func NewLoop(log *slog.Logger, group *spin.Group) (*Loop, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // os.NewFile registers only non-blocking descriptors in Go's poller
		unix.Close(ep)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &Loop{log: log, ep: ep, f: os.NewFile(uintptr(ep), "epoll"), pairs: map[*Pair]struct{}{},
		scratch: make([]byte, scratchSize), halfClosed: map[*Pair]struct{}{}, done: make(chan struct{})}
	l.mu.SetRank(lockrank.SpliceLoop)
	l.moderation = moderator{loop: l, fd: -1}
	if l.member, err = group.NewMember(l.f, l.handleReady); err != nil {
		l.f.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go l.run()
	return l, nil
}

// Close resets every pair and waits for the loop's goroutine. Handlers receive no event after it. It may be called more than once.
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

// Watch calls h whenever fd, which remains the caller's to close, reports one of events, which are those of epoll_ctl(2). The
// token identifies the watch for Rearm and Unwatch. The error is net.ErrClosed after Close, else that of epoll_ctl.
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

// Rearm replaces the events of a watched descriptor.
func (l *Loop) Rearm(fd int, events uint32, token int32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed { // the number ep may belong to another file by now
		return net.ErrClosed
	}
	return l.control(unix.EPOLL_CTL_MOD, fd, events, token, l.slots[token].gen)
}

// Unwatch ends a watch. It must be called before fd is closed.
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

// fetchEvents fills l.events without waiting, and returns how many there are.
func (l *Loop) fetchEvents() int {
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

// run is the loop's goroutine. It runs the handlers unless another goroutine of the group does while it busy-polls. It sleeps in
// Go's network poller, to which the whole epoll set is one descriptor: the thread that finds it ready continues here and need not
// wake another.
func (l *Loop) run() {
	defer close(l.done)
	defer l.end()
	_ = l.member.Run() // until Close
	l.member.Leave()
}

// handleReady is the handler of the loop's spin.Member: it handles all events that are ready and serves each queued pair once.
func (l *Loop) handleReady() spin.Result {
	if l.tickDue.Swap(false) {
		l.tick()
	}
	l.endKilled()
	n := l.fetchEvents()
	if n == 0 && len(l.queue) == 0 {
		return spin.Idle
	}
	l.movedBulk = false
	l.handle(n)
	if len(l.queue) > 0 { // no event will report the rest of their work
		l.movedBulk = true
		l.member.Wake()
	}
	if l.movedBulk {
		return spin.Bulk
	}
	return spin.Progress
}

// handle handles the first n of l.events, and then serves once each pair that was in the queue.
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

// call calls h. A panic resets the one pair it happened in, instead of ending the process and every connection with it.
func (l *Loop) call(h Handler, events uint32) {
	defer func() {
		if e := recover(); e != nil {
			l.log.Error("panic while forwarding a connection; the connection is reset", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
			if s, ok := h.(*side); ok {
				s.pair.abort()
			} else if p, ok := h.(*Pair); ok {
				p.abort()
			}
		}
	}()
	h.Ready(events)
}

// requeue has p served again after the other pairs.
func (l *Loop) requeue(p *Pair) {
	if !p.queued {
		p.queued = true
		l.queue = append(l.queue, p)
	}
}

// noteHalfClosed records that one direction of p has ended.
func (l *Loop) noteHalfClosed(p *Pair) {
	p.halfClosedAt = time.Now()
	l.halfClosed[p] = struct{}{}
	l.mu.Lock()
	l.armTickLocked()
	l.mu.Unlock()
}

// tick sets keep-alive for pairs that are open at a tick, and a shorter keep-alive time for those that have been half closed
// for a whole interval. Most connections end earlier and are spared the system calls.
func (l *Loop) tick() {
	l.mu.Lock()
	l.ticker = nil
	var young []*Pair
	for p := range l.pairs {
		if !p.keepAlive {
			p.keepAlive = true
			young = append(young, p)
		}
	}
	l.mu.Unlock()
	for _, p := range young {
		p.enableKeepAlive()
	}
	now := time.Now()
	for p := range l.halfClosed {
		if now.Sub(p.halfClosedAt) >= tickInterval {
			p.shortenKeepAlive()
			delete(l.halfClosed, p)
		}
	}
	if len(l.halfClosed) > 0 {
		l.mu.Lock()
		l.armTickLocked()
		l.mu.Unlock()
	}
}

// armTickLocked starts the timer of the next tick, unless it is running.
func (l *Loop) armTickLocked() {
	if l.ticker == nil && !l.closed {
		l.ticker = time.AfterFunc(tickInterval, func() {
			l.tickDue.Store(true)
			l.member.Wake()
		})
	}
}

// end resets all pairs and releases the loop's descriptors, as the last thing its goroutine does.
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
	l.moderation.close()
}
