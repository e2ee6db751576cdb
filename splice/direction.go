package splice

import "golang.org/x/sys/unix"

const (
	// pumpBudget is how many bytes a direction may move before other pairs are served.
	pumpBudget = 2 << 20
	// bulkMin is the least number of bytes a splice must move for the direction to stay in bulk. Below it, recv and send cost less
	// than two splices.
	bulkMin = 16 << 10
)

// pump moves data from s to its peer until there is none, the peer is full, or the budget is used up.
func (p *Pair) pump(s *side) {
	for budget := pumpBudget; !p.ended && !s.shut; {
		switch {
		case s.pending():
			if !s.peer.writable || !s.flush() {
				return
			}
		case s.eof:
			s.passFIN()
			return
		case !s.readable || !s.peer.writable:
			s.releasePipe()
			s.enableIn()
			return
		case budget <= 0:
			p.loop.requeue(p)
			return
		default:
			budget -= s.fill()
		}
	}
}

// pending reports whether there is data that has been read and not yet written.
func (s *side) pending() bool { return len(s.rest) > 0 || s.pipe != nil && s.pipe.held > 0 }

// releasePipe returns an empty pipe to the pool: thousands of connections that were busy once must not keep one each.
func (s *side) releasePipe() {
	if s.pipe != nil && s.pipe.held == 0 {
		s.pair.loop.pipes.put(s.pipe)
		s.pipe = nil
	}
}

// passFIN shuts the peer down for writing.
func (s *side) passFIN() {
	p := s.pair
	s.releasePipe()
	s.shut = true
	p.halfClosed.Store(true)
	if s.peer.shut { // both directions are over, and the close that follows sends the FIN
		return
	}
	// It fails only if the connection has ended, which the socket's own event reports.
	_, _, _ = unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(s.peer.fd), unix.SHUT_WR, 0)
	p.loop.noteHalfClosed(p)
}

// fill reads from s, and writes to the peer at once unless the data is in a pipe. It returns how many bytes it read.
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
		s.readable = false // a short read has emptied the socket: later data comes with an event
	}
	s.write(l.scratch[:n], 0)
	return n
}

// fillPipe splices from s to its pipe.
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
		s.pair.loop.movedBulk = true
		s.bulk = n >= bulkMin || s.inDisabled
		return n
	case unix.EAGAIN:
		// splice(2) stops in front of urgent data and does not report a FIN behind it. After a hang-up, recv finds out which it is.
		s.readable = s.hup
		s.bulk = s.bulk && !s.hup
		if s.bulk && !s.moderated {
			s.moderate()
		}
		return 0
	}
	if errno == unix.EINVAL { // the socket does not support splice(2): copy
		s.bulk = false
		return 0
	}
	s.pair.abort()
	return 0
}

// fillUrgent reads up to the urgent byte or, at the urgent mark, the urgent byte itself, and writes it as urgent data. There is one
// mark at a time (RFC 6093).
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

// recv reads into b. When it returns 0 it has changed the state of s: not readable, at end of file, or the pair has ended.
func (s *side) recv(b []byte) (n int) {
	n, errno := recv(s.fd, b)
	switch {
	case errno == unix.EAGAIN:
		s.readable = false
	case errno != 0:
		s.gone = true
		s.pair.abort()
	case n == 0:
		s.eof = true
	}
	return n
}

// write sends b to the peer, and keeps a copy of the part that the peer's buffer does not take.
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
		s.peer.awaitWritable()
		s.rest, s.restOOB = append([]byte(nil), b[n:]...), flags&unix.MSG_OOB != 0
	}
}

// flush writes pending data to the peer. It returns false if the peer is full, or the pair has ended.
func (s *side) flush() bool {
	for len(s.rest) > 0 {
		flags := 0
		if s.restOOB {
			flags = unix.MSG_OOB
		}
		n, errno := send(s.peer.fd, s.rest, flags)
		if !s.written(n, errno) {
			return false
		}
		if s.rest = s.rest[n:]; len(s.rest) == 0 {
			s.rest, s.restOOB = nil, false
		}
	}
	for s.pipe != nil && s.pipe.held > 0 {
		n, errno := moveSplice(s.pipe.r, s.peer.fd, s.pipe.held)
		if !s.written(n, errno) {
			return false
		}
		s.pipe.held -= n
	}
	return true
}

// written records the result of a write to the peer. It returns false if nothing was written.
func (s *side) written(n int, errno unix.Errno) bool {
	switch errno {
	case 0:
		s.moved.Add(uint64(n))
		return true
	case unix.EAGAIN:
		s.peer.awaitWritable()
	default:
		s.pair.abort()
	}
	return false
}

// awaitWritable records that the socket's send buffer is full. EPOLLOUT is enabled from then on: most sockets are never full, and
// with EPOLLOUT they would report each emptied send buffer for nothing.
func (s *side) awaitWritable() {
	s.writable = false
	if !s.outEnabled {
		s.outEnabled = true
		s.setEvents()
	}
}

// setInline has urgent data delivered in the stream, at its place (SO_OOBINLINE, tcp(7)).
func (s *side) setInline() { _ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) }
