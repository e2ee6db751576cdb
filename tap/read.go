package tap

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/spin"
)

const (
	// rxBatch is how many frames one recvmmsg takes at most: 64 frames of 64 KiB are 4 MiB, what the queue of a packet
	// socket holds with the usual net.core.rmem_max.
	rxBatch = 64

	// maxReadErrors is how many reads in a row may lose their frame to an error (a header the kernel cannot express,
	// no memory) before the device counts as broken. It only keeps an error that never ends from burning a CPU.
	maxReadErrors = 1024

	// errorPause is how long to wait where the poller cannot: when the descriptor signals an error alone, or when a
	// packet socket's interface goes down, which comes before it is gone.
	errorPause = 20 * time.Millisecond
	// downChecks times errorPause is how long after "down" the interface is watched for its end. The kernel does both
	// in one go, a grace period of RCU apart (net/core/dev.c: unregister_netdevice_many).
	downChecks = 50

	auxLen = 20 // sizeof(struct tpacket_auxdata)
	ctlLen = unix.SizeofCmsghdr + (auxLen+7)&^7
)

// rxSlot is what reading one frame needs. The pointers in iovs and in the msghdr keep the reader's buffers alive.
type rxSlot struct {
	hdr  [HeaderLen]byte
	ctl  [ctlLen]byte
	iovs []unix.Iovec
	room int // bytes of the frame's Bufs
}

// rxState belongs to the reader, one at a time.
type rxState struct {
	d      *fdDevice
	frames []Frame // of the call under way
	n      int     // of them filled
	err    error   // final, *Error or ErrClosed
	spare  [1]byte // behind every TAP frame: written only when the frame did not fit
	slots  []rxSlot
	msgs   []mmsghdr
	want   int                // messages to ask for: near what came last, so that a lone frame is cheap
	fail   int                // reads in a row that failed
	fn     func(uintptr) bool // d's kind of read, bound once
	poll   func(uintptr)      // and without an answer
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

// Spin implements Spinner.
func (d *fdDevice) Spin(g *spin.Group) { d.group = g }

// Serve implements Poller.
func (d *fdDevice) Serve(turn func() spin.Result) error {
	m, err := d.group.NewMember(d.file, turn)
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
		// The poller gives up on a descriptor that signals EPOLLERR and nothing else, as a TAP without its interface does. The
		// read knows why.
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

// ReadFrames implements Device. A frame shorter than an Ethernet header is delivered as it is.
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
		return r.n, nil // an error waits for the next call
	}
	return 0, r.err
}

// prepare lays out the space of f in s.
func (r *rxState) prepare(s *rxSlot, f *Frame) {
	s.iovs, s.room = s.iovs[:0], 0
	if r.d.vnet {
		s.iovs = append(s.iovs, iovec(s.hdr[:]))
	}
	for _, b := range f.Bufs {
		if len(b) > 0 {
			s.iovs = append(s.iovs, iovec(b))
			s.room += len(b)
		}
	}
	if !r.d.packet {
		s.iovs = append(s.iovs, iovec(r.spare[:]))
	}
}

// accept takes note of n bytes read into s, for f.
func (r *rxState) accept(s *rxSlot, f *Frame, n int) bool {
	f.Header, f.Len = Header{}, 0
	if r.d.vnet {
		if n -= HeaderLen; n >= 0 {
			f.Header = decodeHeader(&s.hdr)
		}
	}
	if n < 0 || n > s.room {
		r.d.rxDropped.Add(1)
		return false
	}
	f.Len = n
	r.d.rxFrames.Add(1)
	r.d.rxBytes.Add(uint64(n))
	return true
}

// readTAP reads until there is nothing more. It returns false when the poller is to wait.
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
		case n == 0: // no TAP does that
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

// readPacket reads one batch.
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
			if r.d.gone(int(fd)) {
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
		r.take(int(n))
	}
	return true
}

// take describes the n frames just read. A lost one keeps its place with Len 0, because the memory in Bufs belongs to
// the caller's slots; a batch of nothing else is not worth returning.
func (r *rxState) take(n int) {
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

// failed counts the frame that errno cost, or ends the device.
func (r *rxState) failed(errno unix.Errno) {
	r.fail++
	switch {
	case errno == unix.EBADFD: // the TAP is gone
		r.err = ErrClosed
	case r.fail > maxReadErrors:
		r.err = &Error{"read", errno}
	default:
		r.d.rxDropped.Add(1)
	}
}

// gone is asked when a packet socket's interface went down, which nobody does to the far end of the pair on
// purpose: it is how its end begins. A socket without interface has index -1 (net/packet/af_packet.c).
func (d *fdDevice) gone(fd int) bool {
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

// vlanTagged reads the control messages of a packet socket: one cmsg with struct tpacket_auxdata, whose first word is
// the status.
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
