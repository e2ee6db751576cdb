package tap

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packetBatch frames cross in one recvmmsg or sendmmsg at most: what the stack's receive loop offers.
const packetBatch = 16

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// packetVector is the memory of one recvmmsg or sendmmsg call.
type packetVector struct {
	msgs [packetBatch]mmsghdr
	hdrs [packetBatch][HeaderLen]byte
	iov  [packetBatch][maxPieces + 1]unix.Iovec
	size [packetBatch]int
}

// packetDevice is a packet socket with PACKET_VNET_HDR on the far end of a veth pair.
type packetDevice struct {
	common

	// The reader's; there is one.
	readFn func(uintptr) bool
	frames []Frame
	n      int
	err    error
	rx     packetVector
}

// Stats adds what the kernel dropped because we did not read in time (PACKET_STATISTICS, which resets when read).
func (d *packetDevice) Stats() Stats {
	_ = d.rc.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			d.rxDropped.Add(uint64(st.Drops))
		}
	})
	return d.common.Stats()
}

func (d *packetDevice) ReadFrames(frames []Frame) (int, error) {
	d.frames, d.n, d.err = frames[:min(len(frames), packetBatch)], 0, nil
	if err := d.rc.Read(d.readFn); err != nil {
		return d.n, final(err)
	}
	return d.n, d.err
}

func (d *packetDevice) read(fd uintptr) bool {
	v := &d.rx
	for i := range d.frames {
		v.iov[i][0] = unix.Iovec{Base: &v.hdrs[i][0], Len: HeaderLen}
		k, size, _ := fillIovec(v.iov[i][:], 1, d.frames[i].Bufs)
		v.size[i] = size
		v.msgs[i] = mmsghdr{hdr: unix.Msghdr{Iov: &v.iov[i][0], Iovlen: uint64(k)}}
	}
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&v.msgs[0])), uintptr(len(d.frames)), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
		case unix.EAGAIN:
			return false
		case unix.EINTR:
			continue
		case unix.ENETDOWN: // said once when the guest takes its end down; frames come again when it is up
			continue
		default:
			d.err = final(e)
			return true
		}
		d.take(int(n))
		return true
	}
}

// take describes n received frames. One that did not fit is left in its place with Len 0, which no frame has: the
// caller's memory belongs to the slots.
func (d *packetDevice) take(n int) {
	v := &d.rx
	for i := range n {
		m, f := &v.msgs[i], &d.frames[i]
		f.Header, f.Len = Header{}, 0
		size := int(m.len) - HeaderLen
		if size < 0 || m.hdr.Flags&unix.MSG_TRUNC != 0 {
			d.rxDropped.Add(1)
			continue
		}
		f.Header, f.Len = decodeHeader(&v.hdrs[i]), size
		d.rxFrames.Add(1)
		d.rxBytes.Add(uint64(size))
	}
	d.n = n
}

// packetWrite is one WriteFrames call, pooled with its closure.
type packetWrite struct {
	d      *packetDevice
	frames []Frame
	n      int
	err    error
	v      packetVector
	fn     func(uintptr)
}

var packetWrites = sync.Pool{New: func() any {
	w := new(packetWrite)
	w.fn = w.write
	return w
}}

func (d *packetDevice) WriteFrames(frames []Frame) (int, error) {
	w := packetWrites.Get().(*packetWrite)
	w.d, w.frames, w.n, w.err = d, frames, 0, nil
	err := d.rc.Control(w.fn)
	n := w.n
	if err == nil {
		err = w.err
	}
	w.d, w.frames = nil, nil
	packetWrites.Put(w)
	if err != nil {
		return n, final(err)
	}
	return n, nil
}

func (w *packetWrite) write(fd uintptr) {
	for rest := w.frames; len(rest) > 0; {
		n := min(len(rest), packetBatch)
		w.send(fd, rest[:n])
		rest = rest[n:]
		if w.err != nil {
			return
		}
	}
}

// send writes up to packetBatch frames. What the kernel does not take is lost, as on a wire: PACKET_QDISC_BYPASS has no
// queue to wait for.
func (w *packetWrite) send(fd uintptr, frames []Frame) {
	d, v := w.d, &w.v
	k := 0
	for i := range frames {
		frames[i].Header.encode(&v.hdrs[k])
		v.iov[k][0] = unix.Iovec{Base: &v.hdrs[k][0], Len: HeaderLen}
		pieces, size, ok := fillIovec(v.iov[k][:], 1, frames[i].Bufs)
		if !ok {
			d.txDropped.Add(1)
			continue
		}
		v.size[k] = size
		v.msgs[k] = mmsghdr{hdr: unix.Msghdr{Iov: &v.iov[k][0], Iovlen: uint64(pieces)}}
		k++
	}
	for at := 0; at < k; {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&v.msgs[at])), uintptr(k-at), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case e == unix.EINTR:
		case e == unix.EBADFD || e == unix.ENODEV || e == unix.ENXIO:
			w.err = e
			return
		case e != 0: // the first of them was refused; the others may pass
			d.txDropped.Add(1)
			at++
		default:
			for range n {
				w.n++
				d.txFrames.Add(1)
				d.txBytes.Add(uint64(v.size[at]))
				at++
			}
		}
	}
}
