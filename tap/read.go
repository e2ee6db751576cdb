package tap

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/spin"
)

const (
	// rxBatch is how many frames one recvmmsg reads at most: 64 frames of 64 KiB are 4 MiB, which is what the queue of a packet
	// socket holds with the usual net.core.rmem_max.
	rxBatch = 64

	// maxReadErrors is how many reads in a row may fail and lose their frame (offloads that no virtio-net header can express,
	// no memory) before the device counts as broken. It keeps a permanent error from occupying a CPU forever.
	maxReadErrors = 1024

	// errorPause is the interval of checks where Go's poller cannot wait: when the descriptor reports EPOLLERR alone, and when
	// a packet socket's interface goes down, which precedes its deletion.
	errorPause = 20 * time.Millisecond
	// downChecks times errorPause is how long an interface that went down is checked for its deletion. The kernel does both
	// in one operation, an RCU grace period apart (net/core/dev.c: unregister_netdevice_many).
	downChecks = 50

	auxLen = 20 // sizeof(struct tpacket_auxdata)
	ctlLen = unix.SizeofCmsghdr + (auxLen+7)&^7
)

// rxSlot is the memory for reading one frame. The pointers in iovs and in the msghdr keep the reader's buffers alive.
type rxSlot struct {
	hdr  [HeaderLen]byte
	ctl  [ctlLen]byte
	iovs []unix.Iovec
	size int // bytes of the frame's Bufs
}

// rxState belongs to the reader; one goroutine at a time reads.
type rxState struct {
	d      *fdDevice
	frames []Frame // argument of the current call
	n      int     // how many of them are filled
	err    error   // final: *Error or ErrClosed
	spare  [1]byte // follows the buffers of every TAP frame: written only if the frame does not fit them
	slots  []rxSlot
	msgs   []mmsghdr
	want   int                // messages to request from recvmmsg: twice the last number, so that a single frame is cheap
	fail   int                // failed reads in a row
	fn     func(uintptr) bool // readTAP or readPacket, bound once; false: wait for readiness
	poll   func(uintptr)      // fn without its result
}

func newRxState(d *fdDevice) *rxState {
	r := &rxState{d: d, want: 1}
	r.slots, r.fn = make([]rxSlot, 1), r.readTAP
	if d.packet {
		r.slots, r.msgs, r.fn = make([]rxSlot, rxBatch), make([]mmsghdr, rxBatch), r.readPacket
	}
	r.poll = func(fd uintptr) { r.fn(fd) }
	return r
}

// SetBusyPollGroup implements BusyPoller.
func (d *fdDevice) SetBusyPollGroup(g *spin.Group) { d.group = g }

// Serve implements Poller.
func (d *fdDevice) Serve(handler func() spin.Result) error {
	m, err := d.group.NewMember(d.file, handler)
	if err != nil {
		return ErrClosed
	}
	defer m.Leave()
	d.member.Store(m)
	for !d.closed.Load() {
		err := m.Run()
		if d.closed.Load() {
			break
		}
		if err == nil {
			return nil
		}
		// Go's poller returns an error for a descriptor that reports EPOLLERR alone, as a TAP without its interface does. The
		// handler's read returns the reason.
		time.Sleep(errorPause)
		if m.RunOnce() == spin.Done {
			return nil
		}
	}
	return ErrClosed
}

// PollFrames implements Poller.
func (d *fdDevice) PollFrames(frames []Frame) (int, error) {
	r := d.rx
	if !r.begin(frames) {
		return 0, r.err
	}
	if d.conn.Control(r.poll) != nil || d.closed.Load() {
		r.err = ErrClosed
	}
	return r.end()
}

// ReadFrames implements Device. It does not check that a frame contains a whole Ethernet header.
func (d *fdDevice) ReadFrames(frames []Frame) (int, error) {
	r := d.rx
	if !r.begin(frames) {
		return 0, r.err
	}
	for r.n == 0 && r.err == nil {
		err := d.conn.Read(r.fn)
		if d.closed.Load() {
			r.err = ErrClosed
		} else if err != nil { // see Serve
			time.Sleep(errorPause)
			if d.conn.Control(r.poll) != nil {
				r.err = ErrClosed
			}
		}
	}
	return r.end()
}

func (r *rxState) begin(frames []Frame) bool {
	r.frames, r.n = frames, 0
	return len(frames) > 0 && r.err == nil
}

func (r *rxState) end() (int, error) {
	r.frames = nil
	if r.n > 0 {
		return r.n, nil // r.err is returned by the next call
	}
	return 0, r.err
}

// prepare points the iovecs of s to the space for the virtio-net header and the buffers of f.
func (r *rxState) prepare(s *rxSlot, f *Frame) {
	s.iovs, s.size = s.iovs[:0], 0
	if r.d.vnet {
		s.iovs = append(s.iovs, iovec(s.hdr[:]))
	}
	for _, b := range f.Bufs {
		if len(b) > 0 {
			s.iovs = append(s.iovs, iovec(b))
			s.size += len(b)
		}
	}
	if !r.d.packet {
		s.iovs = append(s.iovs, iovec(r.spare[:]))
	}
}

// accept completes f after a read of n bytes, header included, into s. It returns false for a frame that was dropped.
func (r *rxState) accept(s *rxSlot, f *Frame, n int) bool {
	f.Header, f.Len = Header{}, 0
	if r.d.vnet {
		if n -= HeaderLen; n >= 0 {
			f.Header = decodeHeader(&s.hdr)
		}
	}
	if n < 0 || n > s.size {
		r.d.rxDropped.Add(1)
		return false
	}
	f.Len = n
	r.d.rxFrames.Add(1)
	r.d.rxBytes.Add(uint64(n))
	return true
}

// readTAP reads frames until there are none or all elements are filled. It returns false if there was none.
func (r *rxState) readTAP(fd uintptr) bool {
	s := &r.slots[0]
	for r.n < len(r.frames) && !r.d.closed.Load() {
		f := &r.frames[r.n]
		r.prepare(s, f)
		n, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&s.iovs[0])), uintptr(len(s.iovs)))
		switch {
		case errno == unix.EAGAIN:
			return r.n > 0
		case errno == unix.EINTR:
		case errno != 0:
			if r.failed(errno); r.err != nil {
				return true
			}
		case n == 0: // end of file: a TAP never reports it, a socket does
			r.err = ErrClosed
			return true
		default:
			r.fail = 0
			if r.accept(s, f, int(n)) {
				r.n++
			}
		}
	}
	return true
}

// readPacket reads one batch of frames. It returns false if there was none.
func (r *rxState) readPacket(fd uintptr) bool {
	for r.n == 0 && !r.d.closed.Load() {
		want := min(r.want, len(r.frames), rxBatch)
		for i := range want {
			s, m := &r.slots[i], &r.msgs[i]
			r.prepare(s, &r.frames[i])
			m.hdr = unix.Msghdr{Iov: &s.iovs[0], Control: &s.ctl[0]}
			m.hdr.SetIovlen(len(s.iovs))
			m.hdr.SetControllen(len(s.ctl))
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(want),
			unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno == unix.EINTR:
			continue
		case errno == unix.ENETDOWN:
			if r.d.deleted(int(fd)) {
				r.err = ErrClosed
				return true
			}
			continue
		case errno != 0:
			if r.failed(errno); r.err != nil {
				return true
			}
			continue
		}
		r.fail = 0
		r.want = min(2*int(n), rxBatch)
		r.acceptBatch(int(n))
	}
	return true
}

// acceptBatch completes the n frames just read. A dropped frame keeps its element, with Len 0, because the buffers belong to the
// elements. A batch in which all frames were dropped counts as none.
func (r *rxState) acceptBatch(n int) {
	good := false
	for i := range n {
		s, m, f := &r.slots[i], &r.msgs[i], &r.frames[i]
		if m.hdr.Flags&unix.MSG_TRUNC != 0 || vlanTagged(s.ctl[:min(int(m.hdr.Controllen), len(s.ctl))]) {
			r.d.rxDropped.Add(1)
			f.Header, f.Len = Header{}, 0
			continue
		}
		good = r.accept(s, f, int(m.len)) || good
	}
	if good {
		r.n = n
	}
}

// failed handles a failed read: it counts the lost frame, or sets the final error.
func (r *rxState) failed(errno unix.Errno) {
	r.fail++
	switch {
	case errno == unix.EBADFD: // the TAP's interface was deleted
		r.err = ErrClosed
	case r.fail > maxReadErrors:
		r.err = &Error{"read", errno}
	default:
		r.d.rxDropped.Add(1)
	}
}

// deleted reports whether a packet socket's interface, which has gone down, is being deleted; it waits for up to a second. Nothing
// sets the far end of the veth pair down on purpose, so going down is normally the first step of its deletion. A socket without
// an interface has interface index -1 (net/packet/af_packet.c).
func (d *fdDevice) deleted(fd int) bool {
	for range downChecks {
		if d.closed.Load() {
			break
		}
		sa, err := unix.Getsockname(fd)
		if ll, ok := sa.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Ifindex <= 0 {
			return true
		}
		time.Sleep(errorPause)
	}
	return false
}

// vlanTagged reports whether the kernel took a VLAN tag off the frame. ctl holds the control messages of a packet socket: one cmsg
// with struct tpacket_auxdata, whose first word is the status.
func vlanTagged(ctl []byte) bool {
	if len(ctl) < unix.SizeofCmsghdr+auxLen {
		return false
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[0]))
	if h.Level != unix.SOL_PACKET || h.Type != unix.PACKET_AUXDATA {
		return false
	}
	return binary.NativeEndian.Uint32(ctl[unix.SizeofCmsghdr:])&unix.TP_STATUS_VLAN_VALID != 0
}
