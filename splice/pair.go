package splice

import (
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

const (
	// halfClosedKeepAlive is the keep-alive time and interval, in seconds, of a half-closed connection. Only keep-alive tells a
	// peer that still waits from one that has vanished, and the system's default of two hours would keep the pair for that long.
	halfClosedKeepAlive = 60

	// sideEvents are the events of every joined socket. EPOLLOUT is added once a socket has been full (awaitWritable).
	sideEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | edgeTriggered
	// edgeTriggered is EPOLLET, which x/sys defines as a negative constant of type int32.
	edgeTriggered = 1 << 31
)

// Pair is two joined sockets. Its methods other than Moved, and its fields other than the two counters, are for the loop's
// handler run.
type Pair struct {
	loop         *Loop
	a, b         side
	ended        bool
	queued       bool // is in loop.queue
	keepAlive    bool // keep-alive has been enabled
	halfClosedAt time.Time
	onEnd        func()

	halfClosed atomic.Bool   // one side was closed by FIN
	toA, toB   atomic.Uint64 // bytes written to each socket
}

// side is one socket of a pair, and the direction that reads from it and writes to peer.
type side struct {
	pair  *Pair
	peer  *side
	moved *atomic.Uint64 // bytes written to the peer
	fd    int
	token int32

	// State of the socket, remembered because edge-triggered events report changes only.
	readable, writable bool
	hup                bool // the peer's FIN or a reset has arrived and may lie behind unread data
	failed             bool // EPOLLERR was reported and SO_ERROR not read yet
	urgent             bool // EPOLLPRI was reported and the urgent byte not read yet
	gone               bool // recv failed: the connection is reset already, so that end need not reset it

	// Event mask, see setEvents.
	outEnabled bool
	inDisabled bool

	// Bulk transfer, see moderation.go.
	bulk        bool
	streak      int  // bytes moved as bulk without interruption
	moderated   bool // loop.moderation will call moderationExpired
	moderatedAt int  // streak when moderation began

	eof  bool // FIN has been read
	shut bool // FIN has been passed on to the peer, after all data

	// Data that has been read and not yet written: either rest or the content of pipe.
	rest    []byte
	restOOB bool // rest is one byte of urgent data
	pipe    *pipe
}

// Join takes over two connected, non-blocking TCP sockets and forwards between them. The caller sets TCP_NODELAY if it is wanted.
// onEnd, which may be nil, is called once, by the loop, when both sockets have been closed; it must not block. On an error
// (net.ErrClosed after Close, else that of epoll_ctl(2)) the sockets remain the caller's.
func (l *Loop) Join(a, b int, onEnd func()) (*Pair, error) {
	p := &Pair{loop: l, onEnd: onEnd}
	p.a = side{pair: p, peer: &p.b, moved: &p.toB, fd: a, writable: true}
	p.b = side{pair: p, peer: &p.a, moved: &p.toA, fd: b, writable: true}
	// Holding mu delays the handling of events until both sockets are watched.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	for _, s := range []*side{&p.a, &p.b} {
		var gen uint32
		s.token, gen = l.claimLocked(s)
		if err := l.control(unix.EPOLL_CTL_ADD, s.fd, sideEvents, s.token, gen); err != nil {
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

// Moved returns how many bytes have been written to the first and to the second socket of Join. Any goroutine may call it.
func (p *Pair) Moved() (toA, toB uint64) { return p.toA.Load(), p.toB.Load() }

// Ready implements Handler for a pair of the loop's queue: it moves what there is in both directions.
func (p *Pair) Ready(uint32) {
	if !p.ended {
		p.pump(&p.a)
		p.pump(&p.b)
		p.endIfOver()
	}
}

// Ready implements Handler: it records what the events report and moves what can be moved.
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
	p.endIfOver()
}

// endIfOver ends the pair if both directions are shut or a socket has failed.
func (p *Pair) endIfOver() {
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
		// The data received before the failure has been read, unless the peer is full: then it is lost, as it would be in the
		// peer's own buffers.
		s.failed = false
		if errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			p.abort()
			return
		}
	}
}

// abort resets both sockets.
func (p *Pair) abort() { p.end(true) }

// end closes both sockets, with a reset or normally.
func (p *Pair) end(reset bool) {
	if p.ended {
		return
	}
	p.ended = true
	l := p.loop
	for _, s := range []*side{&p.a, &p.b} {
		if reset && !s.gone {
			// A plain close could send a FIN, as if the connection had ended normally, and leave a socket in TIME_WAIT.
			rawsock.ResetOnClose(s.fd)
		}
		closeFD(s.fd)
		if s.pipe != nil {
			l.pipes.put(s.pipe)
			s.pipe = nil
		}
		s.rest = nil
	}
	delete(l.halfClosed, p)
	delete(l.moderation.moderated, &p.a)
	delete(l.moderation.moderated, &p.b)
	l.mu.Lock()
	delete(l.pairs, p)
	l.releaseLocked(p.a.token)
	l.releaseLocked(p.b.token)
	l.mu.Unlock()
	if p.onEnd != nil {
		p.onEnd()
	}
}

// enableKeepAlive enables keep-alive with the system's times, so that the pair ends when one of its peers has vanished. A
// connection that ends before the first tick does without.
func (p *Pair) enableKeepAlive() {
	for _, s := range []*side{&p.a, &p.b} {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		s.setInline()
	}
}

// shortenKeepAlive sets the keep-alive times of a half-closed connection.
func (p *Pair) shortenKeepAlive() {
	for _, s := range []*side{&p.a, &p.b} {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, halfClosedKeepAlive)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, halfClosedKeepAlive)
	}
}
