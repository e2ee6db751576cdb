package tap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// txBatch is how many frames one sendmmsg sends at most, which bounds the memory of a txState; more take several calls.
	txBatch = 64
	// maxIovecs is UIO_MAXIOV (include/uapi/linux/uio.h), above which writev fails.
	maxIovecs = 1024
)

// txState is the memory of one WriteFrames call.
type txState struct {
	d      *fdDevice
	frames []Frame // argument of the call
	n      int     // how many of them the kernel accepted
	bytes  int     // of those
	gone   bool    // the interface was deleted
	hdrs   [txBatch][HeaderLen]byte
	iovs   []unix.Iovec
	ends   [txBatch]int // where each frame's iovecs end in iovs
	lens   [txBatch]int // bytes of each frame
	msgs   []mmsghdr
	fn     func(uintptr) // write, bound once
}

func newTxState(d *fdDevice) *txState {
	t := &txState{d: d}
	t.fn = t.write
	if d.packet {
		t.msgs = make([]mmsghdr, txBatch)
	}
	return t
}

// WriteFrames implements Device. A frame that the kernel refuses is dropped and counted, which is no error.
func (d *fdDevice) WriteFrames(frames []Frame) (int, error) {
	t := d.tx.Get().(*txState)
	t.frames, t.n, t.bytes, t.gone = frames, 0, 0, false
	// RawConn.Control keeps the descriptor open without excluding other writers, as RawConn.Write would.
	err := d.conn.Control(t.fn)
	n, gone := t.n, t.gone
	if n > 0 {
		d.txFrames.Add(uint64(n))
		d.txBytes.Add(uint64(t.bytes))
	}
	t.frames = nil
	clear(t.iovs[:cap(t.iovs)]) // a txState in the pool must not keep the frames' memory alive
	d.tx.Put(t)
	if err != nil || gone {
		return n, ErrClosed
	}
	return n, nil
}

func (t *txState) write(fd uintptr) {
	for rest := t.frames; len(rest) > 0 && !t.gone; {
		k := 1
		if t.d.packet && len(rest) > 1 {
			k = min(len(rest), txBatch)
		}
		if k == 1 {
			t.writeOne(fd, &rest[0])
		} else {
			t.writeMany(fd, rest[:k])
		}
		rest = rest[k:]
	}
}

// gather appends the buffers of f to iovs, as the i-th frame of its batch. It drops, and returns false for, a frame that is empty
// or has too many buffers.
func (t *txState) gather(f *Frame, i int) bool {
	start := len(t.iovs)
	if t.d.vnet {
		f.Header.encode(&t.hdrs[i])
		t.iovs = append(t.iovs, iovec(t.hdrs[i][:]))
	}
	t.lens[i] = 0
	for _, b := range f.Bufs {
		if len(b) > 0 {
			t.iovs = append(t.iovs, iovec(b))
			t.lens[i] += len(b)
		}
	}
	if t.lens[i] == 0 || len(t.iovs)-start > maxIovecs {
		t.iovs = t.iovs[:start]
		t.d.txDropped.Add(1)
		return false
	}
	t.ends[i] = len(t.iovs)
	return true
}

func (t *txState) writeOne(fd uintptr, f *Frame) {
	t.iovs = t.iovs[:0]
	if !t.gather(f, 0) {
		return
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&t.iovs[0])), uintptr(len(t.iovs)))
		if errno != unix.EINTR {
			t.wrote(0, errno)
			return
		}
	}
}

func (t *txState) writeMany(fd uintptr, frames []Frame) {
	t.iovs = t.iovs[:0]
	k := 0
	for i := range frames {
		if t.gather(&frames[i], k) {
			k++
		}
	}
	start := 0
	for i := range k { // after all gathering, because growing iovs may have moved it
		t.msgs[i].hdr = unix.Msghdr{Iov: &t.iovs[start]}
		t.msgs[i].hdr.SetIovlen(t.ends[i] - start)
		start = t.ends[i]
	}
	for i := 0; i < k && !t.gone; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&t.msgs[i])), uintptr(k-i),
			unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0: // for the first of these messages; the kernel has not tried the others
			t.wrote(i, errno)
			i++
		default:
			for range n {
				t.wrote(i, 0)
				i++
			}
		}
	}
	clear(t.msgs[:k])
}

// wrote records the result of writing the i-th frame of a batch.
func (t *txState) wrote(i int, errno unix.Errno) {
	switch errno {
	case 0:
		t.n++
		t.bytes += t.lens[i]
	case unix.EBADFD, unix.ENXIO: // the interface was deleted: on a TAP, on a packet socket
		t.gone = true
	default:
		t.d.txDropped.Add(1)
	}
}
