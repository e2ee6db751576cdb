package splice

import (
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

const (
	// turnBytes is what a direction may move before others get their turn.
	turnBytes = 2 << 20
	// bulkRest: a bulk direction that finds less than this goes back to reading, as a pipe pays for itself only in bulk.
	bulkRest = 16 << 10

	// halfClosedIdle is the keep-alive time, in seconds, of a connection one side of which was closed: nothing else
	// tells a peer that waits from one that has vanished.
	halfClosedIdle = 60

	// watched are the events of both sockets. They tell of changes; what is known to be ready is remembered in side.
	watched = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | edgeTriggered
	// edgeTriggered is EPOLLET, which is an int32 in x/sys.
	edgeTriggered = 1 << 31
)

// Pair is two joined sockets. Its fields belong to the loop's turn, but for the two counters.
type Pair struct {
	loop      *Loop
	a, b      side
	ended     bool
	queued    bool // is in loop.queue
	tuned     bool // see tune
	halfSince time.Time
	onEnd     func()

	half     atomic.Bool // one side was closed by FIN
	toA, toB atomic.Uint64
}

// side is one socket and the direction that reads from it.
type side struct {
	pair  *Pair
	peer  *side
	moved *atomic.Uint64 // bytes given to the peer
	fd    int
	token int32

	readable, writable bool
	roomWatched        bool // EPOLLOUT is among the events: once it was needed
	dead               bool // by a reset: another would be for nothing
	hup                bool // FIN, or worse, is behind what can be read
	failed             bool // EPOLLERR was seen
	urgent             bool // EPOLLPRI was seen
	bulk               bool
	streak             int  // bytes moved as bulk, without a break
	napping            bool // napper will call wake
	napMark            int  // streak when the nap began
	quiet              bool // EPOLLIN is not among the events
	eof                bool // FIN was read
	shut               bool // and passed on to the peer, after everything else

	// What was read and not written yet: rest, or what pipe holds.
	rest    []byte
	restOOB bool // rest is one byte of urgent data
	pipe    *pipe
}

// Join takes over two connected, non-blocking TCP sockets, with TCP_NODELAY if that is wanted. onEnd, which
// may be nil, is called once, when both are closed. On an error the sockets are still the caller's.
func (l *Loop) Join(a, b int, onEnd func()) (*Pair, error) {
	p := &Pair{loop: l, onEnd: onEnd}
	p.a = side{pair: p, peer: &p.b, moved: &p.toB, fd: a, writable: true}
	p.b = side{pair: p, peer: &p.a, moved: &p.toA, fd: b, writable: true}
	// Events wait for mu: none is handled before both are watched.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	for _, s := range []*side{&p.a, &p.b} {
		var gen uint32
		s.token, gen = l.claimLocked(s)
		if err := l.control(unix.EPOLL_CTL_ADD, s.fd, watched, s.token, gen); err != nil {
			l.releaseLocked(s.token)
			if s == &p.b {
				_ = l.control(unix.EPOLL_CTL_DEL, a, 0, 0, 0)
				l.releaseLocked(p.a.token)
			}
			return nil, err
		}
	}
	l.pairs[p] = struct{}{}
	l.armTickLocked()
	return p, nil
}

// Moved returns how many bytes were given to the first and to the second socket of Join.
func (p *Pair) Moved() (toA, toB uint64) { return p.toA.Load(), p.toB.Load() }

// Ready gives the pair another turn.
func (p *Pair) Ready(uint32) {
	if !p.ended {
		p.pump(&p.a)
		p.pump(&p.b)
		p.settle()
	}
}

// Ready notes what changed and moves what can be moved.
func (s *side) Ready(events uint32) {
	p := s.pair
	if p.ended {
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLPRI) != 0 {
		s.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hup = true
	}
	s.failed = s.failed || events&unix.EPOLLERR != 0
	s.urgent = s.urgent || events&unix.EPOLLPRI != 0
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.writable = true
		p.pump(s.peer)
	}
	if s.readable {
		p.pump(s)
	}
	p.settle()
}

// settle ends the pair if it is over.
func (p *Pair) settle() {
	if p.ended {
		return
	}
	if p.a.shut && p.b.shut {
		p.end(false)
		return
	}
	for _, s := range []*side{&p.a, &p.b} {
		if !s.failed {
			continue
		}
		// What could be read before the failure was read, unless the peer does not take it: then it is lost, as it would
		// be in the peer's own buffers.
		s.failed = false
		if errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			p.abort()
			return
		}
	}
}

// pump moves what s has to its peer, until there is nothing, or no room, or its turn is over.
func (p *Pair) pump(s *side) {
	for budget := turnBytes; !p.ended && !s.shut; {
		switch {
		case s.pending():
			if !s.peer.writable || !s.flush() {
				return
			}
		case s.eof:
			s.passFIN()
			return
		case !s.readable || !s.peer.writable:
			s.dropPipe()
			s.listen()
			return
		case budget <= 0:
			p.loop.again(p)
			return
		default:
			budget -= s.fill()
		}
	}
}

func (s *side) pending() bool { return len(s.rest) > 0 || s.pipe != nil && s.pipe.held > 0 }

// dropPipe gives an empty pipe back: thousands of connections that were busy once must not keep one each.
func (s *side) dropPipe() {
	if s.pipe != nil && s.pipe.held == 0 {
		s.pair.loop.pipes.put(s.pipe)
		s.pipe = nil
	}
}

// passFIN closes the peer for writing.
func (s *side) passFIN() {
	p := s.pair
	s.dropPipe()
	s.shut = true
	p.half.Store(true)
	if s.peer.shut { // that was the other direction's: close says it as well
		return
	}
	// An error is that of a socket that is gone, which its own event tells.
	_, _, _ = unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(s.peer.fd), unix.SHUT_WR, 0)
	p.loop.halfClosed(p)
}

// fill reads from s, and writes at once what the peer takes. It returns how much it read.
func (s *side) fill() int {
	l := s.pair.loop
	if s.urgent {
		return s.fillUrgent()
	}
	if s.bulk {
		if s.pipe == nil {
			s.pipe = l.pipes.get()
		}
		if s.pipe != nil {
			return s.fillPipe()
		}
	}
	n := s.recv(l.scratch)
	if n <= 0 {
		return 0
	}
	if n == len(l.scratch) {
		s.bulk = true
	} else if s.streak = 0; !s.hup {
		s.readable = false // a short read is the last: what comes now comes with an event
	}
	s.write(l.scratch[:n], 0)
	return n
}

// fillPipe moves from s to its pipe.
func (s *side) fillPipe() int {
	n, errno := moveSplice(s.fd, s.pipe.w, pipeSize)
	switch errno {
	case 0:
		if n == 0 {
			s.eof = true
			return 0
		}
		s.pipe.held += n
		s.streak += n
		s.pair.loop.bulk = true
		s.bulk = n >= bulkRest || s.quiet
		return n
	case unix.EAGAIN:
		s.readable = s.hup // urgent data stops splice(2), and with it the FIN behind it: read, to see
		s.bulk = s.bulk && !s.hup
		if s.bulk && !s.napping {
			s.nap()
		}
		return 0
	}
	if errno == unix.EINVAL { // not a socket that splices
		s.bulk = false
		return 0
	}
	s.pair.abort()
	return 0
}

// fillUrgent reads up to the urgent byte, or the urgent byte (RFC 6093: there is no more than one mark at a time).
func (s *side) fillUrgent() int {
	s.setInline()
	at, err := unix.IoctlGetInt(s.fd, unix.SIOCATMARK)
	buf, flags := s.pair.loop.scratch, 0
	if err == nil && at == 1 {
		buf, flags = buf[:1], unix.MSG_OOB
		s.urgent = false
	}
	n := s.recv(buf)
	if n <= 0 {
		s.urgent = false
		return 0
	}
	s.write(buf[:n], flags)
	return n
}

// recv reads into b. n is 0 when there is nothing now, or for ever: readable or eof have changed, or the pair has ended.
func (s *side) recv(b []byte) (n int) {
	n, errno := recv(s.fd, b)
	switch {
	case errno == unix.EAGAIN:
		s.readable = false
	case errno != 0:
		s.dead = true
		s.pair.abort()
	case n == 0:
		s.eof = true
	}
	return n
}

// write gives b to the peer, and keeps a copy of what it does not take.
func (s *side) write(b []byte, flags int) {
	n, errno := send(s.peer.fd, b, flags)
	switch {
	case errno == unix.EAGAIN:
		n = 0
	case errno != 0:
		s.pair.abort()
		return
	}
	s.moved.Add(uint64(n))
	if n < len(b) {
		s.peer.awaitRoom()
		s.rest, s.restOOB = append([]byte(nil), b[n:]...), flags&unix.MSG_OOB != 0
	}
}

// flush writes what was read before. false: not everything, and the peer takes no more, or is gone.
func (s *side) flush() bool {
	for len(s.rest) > 0 {
		flags := 0
		if s.restOOB {
			flags = unix.MSG_OOB
		}
		n, errno := send(s.peer.fd, s.rest, flags)
		if !s.took(n, errno) {
			return false
		}
		if s.rest = s.rest[n:]; len(s.rest) == 0 {
			s.rest, s.restOOB = nil, false
		}
	}
	for s.pipe != nil && s.pipe.held > 0 {
		n, errno := moveSplice(s.pipe.r, s.peer.fd, s.pipe.held)
		if !s.took(n, errno) {
			return false
		}
		s.pipe.held -= n
	}
	return true
}

func (s *side) took(n int, errno unix.Errno) bool {
	switch errno {
	case 0:
		s.moved.Add(uint64(n))
		return true
	case unix.EAGAIN:
		s.peer.awaitRoom()
	default:
		s.pair.abort()
	}
	return false
}

// abort resets both sockets.
func (p *Pair) abort() { p.end(true) }

// end closes both sockets, with a reset or in good order.
func (p *Pair) end(reset bool) {
	if p.ended {
		return
	}
	p.ended = true
	l := p.loop
	for _, s := range []*side{&p.a, &p.b} {
		if reset && !s.dead {
			// Without it TIME_WAIT sockets would pile up for connections that never ended so.
			rawsock.ResetOnClose(s.fd)
		}
		closeFD(s.fd)
		if s.pipe != nil {
			l.pipes.put(s.pipe)
			s.pipe = nil
		}
		s.rest = nil
	}
	delete(l.halves, p)
	delete(l.naps.asleep, &p.a)
	delete(l.naps.asleep, &p.b)
	l.mu.Lock()
	delete(l.pairs, p)
	l.releaseLocked(p.a.token)
	l.releaseLocked(p.b.token)
	l.mu.Unlock()
	if p.onEnd != nil {
		p.onEnd()
	}
}

// awaitRoom notes that the socket takes no more. Its events have room among them from then on: most sockets are never full,
// and would only tell that they are empty.
func (s *side) awaitRoom() {
	s.writable = false
	if !s.roomWatched {
		s.roomWatched = true
		s.watch()
	}
}

// tune sets keep-alive, at the system's pace, so that a peer which has vanished is noticed on behalf of the other. A
// connection that ends within a tick does without.
func (p *Pair) tune() {
	for _, s := range []*side{&p.a, &p.b} {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		s.setInline()
	}
}

// setInline has urgent data come in its place (tcp(7)).
func (s *side) setInline() { _ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) }

// expectDeath shortens keep-alive.
func (p *Pair) expectDeath() {
	for _, s := range []*side{&p.a, &p.b} {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, halfClosedIdle)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, halfClosedIdle)
	}
}
