package tcp

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

const (
	// smallRead: exchanges up to this size take one read into a pooled buffer; more than this in one go is bulk,
	// which is read from the socket straight into netstack's buffers.
	smallRead = 16 << 10
	// bulkMax is what is moved at once in bulk: one frame, which stays in the cache between the two copies.
	bulkMax = stack.MaxSegment

	// stallWatch: when the guest has not read for this long, a goroutine watches the host's socket, where a reset would
	// otherwise go unnoticed.
	stallWatch = 20 * time.Millisecond
)

var smallPool = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}

// guestToHost moves what the guest sends.
func (f *connection) guestToHost() {
	w := sockWriter{}
	var n int
	var rerr error
	step := func(fd uintptr) bool {
		w.fd, w.blocked = fd, false
		n, rerr = f.c.ReadTo(&w)
		if n > 0 {
			f.toHost.Add(uint64(n))
			f.p.toHost.Add(uint64(n))
			f.c.ModerateReceive(n)
		}
		return !w.blocked || w.err != nil
	}
	for {
		if err := f.h.rc.Write(step); err != nil { // closed, or woken because the guest has failed
			f.abort()
			return
		}
		switch {
		case w.err != nil: // the host's side has failed
			f.abort()
			return
		case rerr == nil:
			continue
		case errors.Is(rerr, stack.ErrWouldBlock):
			<-f.c.Readable()
		case errors.Is(rerr, io.EOF):
			f.closeHostWrite()
			return
		default: // the guest has reset
			f.abort()
			return
		}
	}
}

func (f *connection) closeHostWrite() {
	f.guestEOF.Store(true)
	_ = f.h.rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	f.c.EnableKeepAlive(halfClosedIdle * time.Second)
}

// sockWriter writes to a non-blocking socket and never waits. RawSyscall: the call cannot block, so the Go scheduler need
// not be informed.
type sockWriter struct {
	fd      uintptr
	blocked bool
	err     error
}

func (w *sockWriter) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, w.fd, uintptr(unsafe.Pointer(&b[done])), uintptr(len(b)-done), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			done += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			w.blocked = true
			return done, io.ErrShortWrite
		default:
			w.err = e
			return done, e
		}
	}
	return done, nil
}

// WriteUrgent implements stack.UrgentWriter.
func (w *sockWriter) WriteUrgent(b byte) error {
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, w.fd, uintptr(unsafe.Pointer(&b)), 1, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT|unix.MSG_OOB, 0, 0)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			w.blocked = true
			return io.ErrShortWrite
		default:
			w.err = e
			return e
		}
	}
}

// sockReader reads a non-blocking socket that has, as the caller has checked, enough data queued.
type sockReader struct {
	fd   uintptr
	read int // bytes so far
}

func (r *sockReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, r.fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case e == unix.EINTR:
		case e != 0:
			return 0, e
		case n == 0:
			return 0, io.ErrUnexpectedEOF // never io.EOF: netstack would wait for the rest for ever
		default:
			r.read += int(n)
			return int(n), nil
		}
	}
}

// hostToGuest moves what the host sends.
func (f *connection) hostToGuest() {
	var (
		r      sockReader
		bulk   bool
		queued int // in the host's socket, at least; only while bulk
		n      int
		err    error
		buf    *[]byte
		urgent bool // what small has read is urgent data
	)
	// small waits for data and reads it into a pooled buffer, which is held only while there is something in it.
	small := func(fd uintptr) bool {
		buf = smallPool.Get().(*[]byte)
		r.fd = fd
		to := *buf
		if urgent = atMark(fd); urgent {
			to = to[:1]
		}
		n, err = r.Read(to)
		if err == unix.EAGAIN {
			smallPool.Put(buf)
			buf = nil
			return false
		}
		return true
	}
	// large reads what is queued straight into netstack, as much as its send buffer takes. The queue's length is read
	// again (TIOCINQ) only when the known rest of it does not fill a frame.
	large := func(fd uintptr) bool {
		if queued < bulkMax {
			var e error
			if queued, e = unix.IoctlGetInt(int(fd), unix.TIOCINQ); e == nil && queued >= smallRead {
				queued = beforeMark(fd, queued)
			}
			if e != nil || queued < smallRead {
				bulk, queued = false, 0
				return true
			}
		}
		r.fd, r.read = fd, 0
		n, err = f.c.WriteFrom(&r, min(queued, bulkMax))
		queued -= n
		if n != r.read { // bytes that were read and not written are lost; the connection must not go on with a gap
			err = io.ErrShortWrite
		}
		return true
	}
	for {
		if bulk {
			n, err = 0, nil
			if e := f.h.rc.Read(large); e != nil {
				f.abort()
				return
			}
			f.toGuest.Add(uint64(n))
			f.p.toGuest.Add(uint64(n))
			if errors.Is(err, stack.ErrWouldBlock) {
				if !f.waitGuest() {
					f.abort()
					return
				}
			} else if err != nil {
				f.abort()
				return
			}
			continue
		}
		if e := f.h.rc.Read(small); e != nil {
			f.abort()
			return
		}
		ok := err == nil && (urgent && f.writeGuestUrgent((*buf)[0]) || !urgent && f.writeGuest((*buf)[:n]))
		bulk = n == smallRead
		smallPool.Put(buf)
		buf = nil
		if ok {
			f.toGuest.Add(uint64(n))
			f.p.toGuest.Add(uint64(n))
			continue
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && !f.hostReset() { // FIN
			_ = f.c.CloseWrite()
			f.h.shortenKeepAlive()
			f.watchHost()
			return
		}
		f.abort()
		return
	}
}

// writeGuest writes all of b; false means that the connection has ended.
func (f *connection) writeGuest(b []byte) bool {
	br := byteReader{b}
	for len(br.b) > 0 {
		_, err := f.c.WriteFrom(&br, len(br.b))
		if errors.Is(err, stack.ErrWouldBlock) {
			if !f.waitGuest() {
				return false
			}
		} else if err != nil {
			return false
		}
	}
	return true
}

// writeGuestUrgent is writeGuest for a byte of urgent data.
func (f *connection) writeGuestUrgent(b byte) bool {
	for {
		err := f.c.WriteUrgent(b)
		if !errors.Is(err, stack.ErrWouldBlock) {
			return err == nil
		}
		if !f.waitGuest() {
			return false
		}
	}
}

type byteReader struct{ b []byte }

func (r *byteReader) Read(p []byte) (int, error) {
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// waitGuest waits until netstack's send buffer has space. Nothing reads the host's socket meanwhile, so after stallWatch a goroutine watches
// it for a reset; false means that one came.
func (f *connection) waitGuest() bool {
	if f.stall == nil {
		f.stall = time.NewTimer(stallWatch)
	} else {
		f.stall.Reset(stallWatch)
	}
	select {
	case <-f.c.Writable():
		f.stall.Stop()
		return true
	case <-f.stall.C:
	}
	closed := make(chan struct{})
	ended := make(chan struct{}) // of the watching goroutine
	f.p.wg.Add(1)
	go func() {
		defer f.p.wg.Done()
		defer close(ended)
		if f.hostClosed() && f.hostFailed() {
			close(closed)
		}
	}()
	ok := true
	select {
	case <-f.c.Writable():
	case <-closed:
		ok = false
	}
	// settleReader removes the deadline only after the goroutine has ended: one that had not begun to wait would miss wakeReader.
	f.h.wakeReader()
	<-ended
	f.h.settleReader()
	return ok && !f.c.Failed()
}

// hostReset reports whether the end of stream that a read has returned is in fact a reset: the socket reports its error once, and
// the other direction's write may have got it. After our FIN there are no more writes.
func (f *connection) hostReset() bool {
	reset := false
	_ = f.h.rc.Control(func(fd uintptr) { reset = rawsock.Closed(fd) && !f.guestEOF.Load() })
	return reset
}

// hostFailed reports whether the host's socket, which is closed, was reset or timed out. After both FINs a socket is closed as
// well, perhaps with data that was not read yet.
func (f *connection) hostFailed() bool {
	if !f.guestEOF.Load() {
		return true
	}
	failed := true
	_ = f.h.rc.Control(func(fd uintptr) {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		failed = err != nil || errno != 0
	})
	return failed
}

// hostClosed waits until the host's socket is closed; false means that wakeReader ended the wait.
func (f *connection) hostClosed() bool {
	err := f.h.rc.Read(rawsock.Closed)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// watchHost waits, after the host's FIN, for the end of the other direction. Nothing reads the host's socket any more,
// but its reset must still be noticed.
func (f *connection) watchHost() {
	f.hostEOF.Store(true)
	select {
	case <-f.sent:
		return
	default:
	}
	// After both FINs the socket closes without a failure.
	if f.hostClosed() && !f.guestEOF.Load() || f.c.Failed() {
		f.abort()
	}
}
