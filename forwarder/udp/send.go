package udp

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

// sendUDP sends d: a GSO batch whole where the kernel takes it, else its datagrams, with one call for all of them where it
// can be. It may set t.link and t.single. It returns how many datagrams were not sent, their bytes, and the error of the first
// of them.
func (s *socket) sendUDP(t *target, d *stack.Datagram, ttl uint8) (lost, bytes int, err error) {
	o := options(ttl, d.TOS, d.DF)
	size := int(d.GSOSize)
	if size == 0 || size >= len(d.Payload) {
		if err = s.sendOne(t, d.Payload, o); err != nil {
			return 1, len(d.Payload), err
		}
		return 0, 0, nil
	}
	for rest := d.Payload; len(rest) > 0; {
		batch := rest[:min(len(rest), size*maxSegments)]
		if len(batch) > size && !t.single && !t.aboveLink(size) {
			e := s.send(t, nil, batch, d.GSOSize, o)
			switch e {
			case nil:
				rest = rest[len(batch):]
				continue
			case unix.EIO:
				// The route has no checksum offload, or uses IPsec: the next batch would fail as well.
				t.single = true
			case unix.EINVAL, unix.EMSGSIZE:
				// Not on this kernel or with this size, or a datagram is larger than the MTU, which for each alone
				// decides whether it may be fragmented.
			default:
				return lost + batchLen(len(rest), d.GSOSize), bytes + len(rest), e
			}
		}
		l, b, e := s.sendEach(t, batch, size, o)
		if lost, bytes = lost+l, bytes+b; err == nil {
			err = e
		}
		rest = rest[len(batch):]
	}
	return lost, bytes, err
}

// sendEach sends the datagrams of a batch one by one, as sendOne does. What it returns is what sendUDP does.
func (s *socket) sendEach(t *target, batch []byte, size int, o sendOptions) (lost, bytes int, err error) {
	for len(batch) > 0 {
		if k := len(batch) / size; k > 1 {
			so := o
			if o.pmtu == unix.IP_PMTUDISC_DO && t.aboveLink(size) {
				so.pmtu = unix.IP_PMTUDISC_WANT
			}
			n := s.sendMany(t, batch[:k*size], size, so)
			if batch = batch[n*size:]; len(batch) == 0 {
				break
			}
			if n == k {
				continue
			}
		}
		// The last one, or one that was refused: it is sent again alone, which sets the options that it needs.
		one := batch[:min(size, len(batch))]
		if e := s.sendOne(t, one, o); e != nil {
			if err == nil {
				err = e
			}
			if e == errSocketClosed || e == unix.EAGAIN || e == unix.ENOBUFS || e == unix.ENOMEM {
				return lost + batchLen(len(batch), uint16(size)), bytes + len(batch), err // the others would fail as well
			}
			lost, bytes = lost+1, bytes+len(one)
		}
		batch = batch[len(one):]
	}
	return lost, bytes, err
}

// sendOne sends one datagram, and lets the kernel fragment one that is larger than the host's link, see mtu.go.
func (s *socket) sendOne(t *target, b []byte, o sendOptions) error {
	if o.pmtu != unix.IP_PMTUDISC_DO {
		return s.send(t, nil, b, 0, o)
	}
	if !t.aboveLink(len(b)) {
		err := s.send(t, nil, b, 0, o)
		if err != unix.EMSGSIZE || t.link > 0 {
			return err
		}
		if t.findLink(); !t.aboveLink(len(b)) {
			return err
		}
	}
	o.pmtu = unix.IP_PMTUDISC_WANT
	return s.send(t, nil, b, 0, o)
}

// many is what one sendmmsg needs.
type many struct {
	name rawsock.Addr
	oob  controlBuffer
	iovs [maxSegments]unix.Iovec
	msgs [maxSegments]mmsghdr
}

var manyPool = sync.Pool{New: func() any { return new(many) }}

// sendMany sends b as datagrams of size bytes, at most maxSegments and none of them shorter, and returns how many left
// before one was refused.
func (s *socket) sendMany(t *target, b []byte, size int, o sendOptions) int {
	m := manyPool.Get().(*many)
	defer manyPool.Put(m)
	name := m.name.Set(t.peer, s.v6, t.scope)
	m.oob.n = 0
	if t.local.IsValid() || t.scope != 0 {
		m.oob.addLocal(t.local, t.scope, s.v6)
	}
	if t.group {
		m.oob.addTTL(&o, s.v6)
	}
	n := min(len(b)/size, maxSegments)
	for i := range n {
		m.iovs[i].Base = &b[i*size]
		m.iovs[i].SetLen(size)
		h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&m.name)), Namelen: name, Iov: &m.iovs[i]}
		h.SetIovlen(1)
		if m.oob.n > 0 {
			h.Control = &m.oob.buf[0]
			h.SetControllen(m.oob.n)
		}
		m.msgs[i].hdr = h
	}
	defer clear(m.iovs[:n]) // the pool must not hold the payload
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendClosed {
		return 0
	}
	s.setOptions(o, t.peer.Addr().Is6())
	for i := 0; ; {
		s.sends++
		k, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&m.msgs[i])), uintptr(n-i),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return i
		}
		if i += int(k); i == n {
			return n
		}
	}
}
