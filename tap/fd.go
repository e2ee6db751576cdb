package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxPieces is how many pieces of a frame one writev takes: the headers, and 64 KiB in views of 4 KiB or more.
const maxPieces = 30

// FromFD makes a Device of a non-blocking descriptor opened by package userns; info.Kind says of which kind it is. The
// Device owns f from now on, also when FromFD fails.
func FromFD(f *os.File, info Info) (Device, error) {
	fail := func(err error) (Device, error) {
		f.Close()
		return nil, fmt.Errorf("tap: %s device: %w", info.Kind, err)
	}
	// The descriptor may have been registered with the poller before it was attached to an interface, when a TUN file
	// reports an error and no more; a fresh one has not.
	rc, err := f.SyscallConn()
	if err != nil {
		return fail(err)
	}
	fd, derr := -1, error(nil)
	if err := rc.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return fail(err)
	}
	if derr != nil {
		return fail(derr)
	}
	f.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fail(err)
	}
	f = os.NewFile(uintptr(fd), "link:"+info.Name)
	if rc, err = f.SyscallConn(); err != nil {
		return fail(err)
	}
	switch info.Kind {
	case KindTAP, KindTAPPlain:
		d := &tapDevice{common: common{f: f, rc: rc, info: info}, header: info.Kind == KindTAP}
		d.readFn = d.read
		return d, nil
	case KindPacket:
		d := &packetDevice{common: common{f: f, rc: rc, info: info}}
		d.readFn = d.read
		return d, nil
	}
	return fail(errors.New("unknown kind"))
}

// common is what the kinds share.
type common struct {
	f    *os.File
	rc   syscall.RawConn
	info Info

	rxFrames, rxBytes, rxDropped atomic.Uint64
	txFrames, txBytes, txDropped atomic.Uint64
}

func (c *common) Info() Info { return c.info }

func (c *common) Close() error {
	err := c.f.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func (c *common) Stats() Stats {
	return Stats{
		RxFrames: c.rxFrames.Load(), RxBytes: c.rxBytes.Load(), RxDropped: c.rxDropped.Load(),
		TxFrames: c.txFrames.Load(), TxBytes: c.txBytes.Load(), TxDropped: c.txDropped.Load(),
	}
}

// final translates what ended a read: the device was closed, or its namespace is gone (EBADFD, ENODEV).
func final(err error) error {
	switch {
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EBADFD), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ErrClosed
	}
	return err
}

// tapDevice is a TAP, with or without virtio-net headers.
type tapDevice struct {
	common
	header bool

	// The reader's; there is one.
	readFn func(uintptr) bool
	frames []Frame
	n      int
	err    error
	rxHdr  [HeaderLen]byte
	rxIov  [maxPieces + 1]unix.Iovec
}

func (d *tapDevice) ReadFrames(frames []Frame) (int, error) {
	d.frames, d.n, d.err = frames, 0, nil
	if err := d.rc.Read(d.readFn); err != nil {
		return d.n, final(err)
	}
	return d.n, d.err
}

// read takes frames until there are no more; false means wait.
func (d *tapDevice) read(fd uintptr) bool {
	for d.n < len(d.frames) {
		f := &d.frames[d.n]
		k := 0
		if d.header {
			d.rxIov[0] = unix.Iovec{Base: &d.rxHdr[0], Len: HeaderLen}
			k = 1
		}
		room := 0
		for _, b := range f.Bufs {
			if len(b) > 0 && k < len(d.rxIov) {
				d.rxIov[k] = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
				room += len(b)
				k++
			}
		}
		n, _, e := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&d.rxIov[0])), uintptr(k))
		switch e {
		case 0:
		case unix.EAGAIN:
			return d.n > 0
		case unix.EINTR:
			continue
		default:
			d.err = final(e)
			return true
		}
		size := int(n)
		f.Header = Header{}
		if d.header {
			if size -= HeaderLen; size < 0 {
				d.rxDropped.Add(1)
				continue
			}
			f.Header = decodeHeader(&d.rxHdr)
		}
		// tun_chr_read_iter clips what it returns to the room it was given, so a full buffer may be a cut frame.
		if size >= room {
			d.rxDropped.Add(1)
			continue
		}
		f.Len = size
		d.n++
		d.rxFrames.Add(1)
		d.rxBytes.Add(uint64(size))
	}
	return true
}

// tapWrite is one WriteFrames call, pooled with its closure so that it costs no allocation.
type tapWrite struct {
	d      *tapDevice
	frames []Frame
	n      int
	err    error
	hdr    [HeaderLen]byte
	iov    [maxPieces + 1]unix.Iovec
	fn     func(uintptr)
}

var tapWrites = sync.Pool{New: func() any {
	w := new(tapWrite)
	w.fn = w.write
	return w
}}

func (d *tapDevice) WriteFrames(frames []Frame) (int, error) {
	w := tapWrites.Get().(*tapWrite)
	w.d, w.frames, w.n, w.err = d, frames, 0, nil
	// Control, not Write: it keeps the descriptor open but makes no queue of the writers.
	err := d.rc.Control(w.fn)
	n := w.n
	if err == nil {
		err = w.err
	}
	w.d, w.frames = nil, nil
	tapWrites.Put(w)
	if err != nil {
		return n, final(err)
	}
	return n, nil
}

func (w *tapWrite) write(fd uintptr) {
	d := w.d
	for i := range w.frames {
		f := &w.frames[i]
		k := 0
		if d.header {
			f.Header.encode(&w.hdr)
			w.iov[0] = unix.Iovec{Base: &w.hdr[0], Len: HeaderLen}
			k = 1
		}
		k, size, ok := fillIovec(w.iov[:], k, f.Bufs)
		if !ok {
			d.txDropped.Add(1)
			continue
		}
		_, _, e := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(k))
		for e == unix.EINTR {
			_, _, e = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(k))
		}
		switch e {
		case 0:
			w.n++
			d.txFrames.Add(1)
			d.txBytes.Add(uint64(size))
		case unix.EBADFD, unix.ENODEV:
			w.err = e
			return
		default:
			// EIO while the guest has its link down, EAGAIN and ENOBUFS when it cannot take more, EINVAL for a
			// header it does not like: the frame is lost, as on a wire.
			d.txDropped.Add(1)
		}
	}
}

// fillIovec appends the pieces to iov from index k on.
func fillIovec(iov []unix.Iovec, k int, bufs [][]byte) (n, size int, ok bool) {
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if k == len(iov) {
			return 0, 0, false
		}
		iov[k] = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
		size += len(b)
		k++
	}
	return k, size, size > 0
}
