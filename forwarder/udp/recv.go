package udp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/stack"
)

const (
	// recvBatch messages are read by one recvmmsg at most: from one sender, that many datagrams of the size of an
	// Ethernet frame make a batch of 64 KiB. Each buffer holds the largest datagram or GSO batch; pages that were never needed take no
	// memory.
	recvBatch  = 48
	recvBuffer = 65536
	// maxBatchBytes is the payload of the largest datagram over IPv4, which bounds a GSO batch in both families.
	maxBatchBytes = 65535 - udp4Headers
	// pollEvents sockets are served for each wait.
	pollEvents = 64
	// controlSpace holds every control message that is requested: TOS, TTL, GRO, packet info, each in both families.
	controlSpace = 256
)

// mmsghdr is struct mmsghdr (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// receiver is the memory of the reader, used for one socket after the other.
type receiver struct {
	msgs    [recvBatch]mmsghdr
	iovs    [recvBatch]unix.Iovec
	names   [recvBatch]rawsock.Addr
	control [recvBatch][controlSpace]byte
	bufs    [recvBatch][]byte
	errBuf  [errorQuote]byte
	more    [][]byte // of the batch that is being delivered, see readBatch
	dgram   stack.Datagram
	echo    stack.Echo

	want  int // messages to request: a little more than came last, so that a single one is cheap
	dirty int // messages whose lengths the kernel has overwritten
}

func newReceiver() *receiver {
	r := &receiver{want: 1, dirty: recvBatch, more: make([][]byte, 0, recvBatch)}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, recvBuffer)
		r.iovs[i].Base = &r.bufs[i][0]
		r.iovs[i].SetLen(recvBuffer)
	}
	return r
}

// arm resets the lengths in message i to the capacity of its buffers: the kernel has overwritten them.
func (r *receiver) arm(i int) {
	m := &r.msgs[i].hdr
	m.Name, m.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
	m.Iov = &r.iovs[i]
	m.SetIovlen(1)
	m.Control = &r.control[i][0]
	m.SetControllen(controlSpace)
	m.Flags = 0
}

// openPoll makes the epoll instance, itself a file of Go's poller: there the reader waits, and Close ends the wait.
func (x *Path) openPoll() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return &Error{Op: "epoll_create", Err: err}
	}
	_ = unix.SetNonblock(fd, true) // os.NewFile registers only non-blocking descriptors in Go's poller
	x.epfd, x.epoll = fd, os.NewFile(uintptr(fd), "epoll")
	err = x.epoll.SetReadDeadline(time.Time{}) // fails if Go's poller did not register the file
	if err == nil {
		x.receiver = newReceiver()
		x.member, err = x.f.Spin.NewMember(x.epoll, x.handleReady)
	}
	if err != nil {
		_ = x.epoll.Close()
		return &Error{Op: "poll", Err: err}
	}
	return nil
}

// watch registers s with the reader. mu is held.
func (x *Path) watch(s *socket) error {
	// Level-triggered: a socket with more than a batch is read again after the others. Errors are always reported.
	err := unix.EpollCtl(x.epfd, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.fd)})
	if err == nil {
		x.byFD[int32(s.fd)] = s
	}
	return err
}

// readLoop serves every socket until Close. Waiting on Go's poller made a round trip a third shorter than a thread that
// blocks in epoll_wait, which the scheduler has to give a processor first.
func (x *Path) readLoop() {
	defer x.wg.Done()
	_ = x.member.Run()
}

// handleReady is one handler run: it reads from the sockets that are ready. It alone uses the receiver, and is never run by two
// goroutines at once.
func (x *Path) handleReady() spin.Result {
	n := pollNow(uintptr(x.epfd), x.events[:])
	if n <= 0 {
		return spin.Idle
	}
	did := spin.Progress
	for i := range n {
		e := &x.events[i]
		x.mu.Lock()
		s := x.byFD[e.Fd] // the number may belong to a new socket by now: reading that is harmless, as it does not block
		x.mu.Unlock()
		if s == nil {
			continue
		}
		if e.Events&unix.EPOLLERR != 0 {
			x.readErrors(s, x.receiver)
		}
		if x.readBatch(s, x.receiver) > 1 {
			did = spin.Bulk
		}
	}
	return did
}

// pollNow fetches the events that are ready, without waiting. RawSyscall: it cannot block.
func pollNow(ep uintptr, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, ep, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// readBatch reads at most a batch of messages and sends them to the guest. It returns the number of messages.
func (x *Path) readBatch(s *socket, r *receiver) int {
	for i := range r.dirty {
		r.arm(i)
	}
	r.dirty = 0
	s.recvMu.Lock()
	if s.recvClosed {
		s.recvMu.Unlock()
		return 0
	}
	// Raw: it cannot block, and a long copy must not cause Go's scheduler to move the P to another thread (see sendmsg).
	k, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.want), unix.MSG_DONTWAIT, 0, 0)
	s.recvMu.Unlock()
	if errno != 0 {
		return 0 // nothing there, or a pending error, which is thereby cleared
	}
	n := int(k)
	r.dirty, r.want = n, min(2*n, recvBatch)
	for i := 0; i < n; {
		from, scope := r.names[i].Get()
		c, data := parseControl(r.controlOf(i)), r.data(i)
		first := i
		if i++; s.key.proto == protoEcho {
			x.echoIn(s, r, from, data, c)
			continue
		}
		// Datagrams of one sender that were read together are sent as one batch. No datagram waits for a later one.
		r.more = r.more[:0]
		if c.gso == 0 {
			total, last := len(data), len(data)
			for ; i < n && r.follows(i, first, last, len(data)) && total+int(r.msgs[i].len) <= maxBatchBytes; i++ {
				last = int(r.msgs[i].len)
				total += last
				r.more = append(r.more, r.data(i))
			}
			if len(r.more) > 0 {
				c.gso = uint16(len(data))
			}
		}
		if s.pub != nil {
			x.publishedIn(s, r, from, scope, data, c)
		} else {
			x.udpIn(s, r, from, data, c)
		}
	}
	return n
}

func (r *receiver) data(i int) []byte { return r.bufs[i][:r.msgs[i].len] }

func (r *receiver) controlOf(i int) []byte {
	return r.control[i][:min(uint64(r.msgs[i].hdr.Controllen), controlSpace)]
}

// follows reports whether message i continues the batch that began with message first, whose datagrams are of size bytes
// and whose last one so far is of last bytes: same sender, address, TTL and TOS. Only the last may be shorter.
func (r *receiver) follows(i, first, last, size int) bool {
	n := int(r.msgs[i].len)
	if n == 0 || n > size || last < size || !bytes.Equal(r.controlOf(i), r.controlOf(first)) {
		return false
	}
	a, as := r.names[first].Get()
	b, bs := r.names[i].Get()
	return a == b && as == bs
}

// control holds the control messages of a received packet.
type control struct {
	ttl, tos uint8
	gso      uint16     // size of the datagrams of a GSO batch; 0: one datagram
	local    netip.Addr // our address to which it was sent; zero unless requested
	ifindex  uint32
	err      forwarder.QueuedError // of a message from the error queue
}

// parseControl reads the control messages in b (cmsg(3)); unknown and malformed ones are ignored.
func parseControl(b []byte) (c control) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return c
		}
		b = rest
		switch h.Level {
		case unix.IPPROTO_IP:
			c.ipv4(h.Type, data)
		case unix.IPPROTO_IPV6:
			c.ipv6(h.Type, data)
		case unix.IPPROTO_UDP:
			if h.Type == unix.UDP_GRO && len(data) >= 4 {
				c.gso = uint16(binary.NativeEndian.Uint32(data))
			}
		}
	}
	return c
}

func (c *control) ipv4(typ int32, data []byte) {
	switch {
	case typ == unix.IP_TOS && len(data) >= 1:
		c.tos = data[0]
	case typ == unix.IP_TTL && len(data) >= 4:
		c.ttl = uint8(binary.NativeEndian.Uint32(data))
	case typ == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		c.ifindex = binary.NativeEndian.Uint32(data)
		c.local = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst: ours even if it was sent to a broadcast address
	case typ == unix.IP_RECVERR:
		c.err.Parse(data)
	}
}

func (c *control) ipv6(typ int32, data []byte) {
	switch {
	case typ == unix.IPV6_TCLASS && len(data) >= 4:
		c.tos = uint8(binary.NativeEndian.Uint32(data))
	case typ == unix.IPV6_HOPLIMIT && len(data) >= 4:
		c.ttl = uint8(binary.NativeEndian.Uint32(data))
	case typ == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		if c.local.Is4() {
			return // an IPv4 packet on a socket for both families: IP_PKTINFO has the address
		}
		c.local = netip.AddrFrom16([16]byte(data[:16])).Unmap()
		c.ifindex = binary.NativeEndian.Uint32(data[16:])
	case typ == unix.IPV6_RECVERR:
		c.err.Parse(data)
	}
}

// hop is the TTL after the gateway. No "time exceeded" could be sent to the remote, so the TTL never becomes 0 here.
func hop(ttl uint8, gateway bool) uint8 {
	if gateway || ttl <= 1 {
		return ttl
	}
	return ttl - 1
}

// udpIn sends a datagram, or a GSO batch, that an outbound socket received to the guest.
func (x *Path) udpIn(s *socket, r *receiver, from netip.AddrPort, data []byte, c control) {
	now := x.now()
	x.mu.Lock()
	f := x.peers[peerKey{s: s, peer: from}]
	if f == nil {
		x.unspokenIn(s, r, from, data, c)
		return
	}
	x.received(f, now, data, r.more, c)
	if !f.onAlt() {
		f.alt = netip.AddrPort{} // the first address has answered: the alternative is not needed
	}
	key, gateway := f.key, f.gateway
	x.mu.Unlock()
	x.deliver(r, key, gateway, data, c)
}

// received accounts a packet, or a GSO batch, of the remote. mu is held.
func (x *Path) received(f *conversation, now time.Duration, data []byte, more [][]byte, c control) {
	x.use(f, now)
	pkts, bytes := batchSize(data, more, c.gso)
	f.inPkts += pkts
	f.inBytes += bytes
}

// batchSize returns how many datagrams, and bytes of payload, were received as one.
func batchSize(data []byte, more [][]byte, gso uint16) (pkts, bytes uint64) {
	bytes = uint64(len(data))
	if len(more) == 0 {
		return uint64(batchLen(len(data), gso)), bytes
	}
	for _, b := range more {
		bytes += uint64(len(b))
	}
	return uint64(1 + len(more)), bytes
}

func batchLen(n int, gso uint16) int {
	if gso == 0 || n == 0 {
		return 1
	}
	return (n + int(gso) - 1) / int(gso)
}

// deliver writes a datagram, or a GSO batch, to the guest.
func (x *Path) deliver(r *receiver, key flowKey, gateway bool, data []byte, c control) {
	d := &r.dgram
	*d = stack.Datagram{Flow: stack.Flow{Endpoint: key.endpoint, Src: key.remote, Dst: key.guest}, Payload: data, More: r.more, TTL: hop(c.ttl, gateway), TOS: c.tos}
	if int(c.gso) < len(data) || len(r.more) > 0 {
		d.GSOSize = c.gso
	}
	pkts, bytes := batchSize(data, r.more, c.gso)
	if err := x.guest.WriteUDP(d); err != nil {
		x.count.drops[DropGuestWrite].Add(pkts)
		return
	}
	x.count.inPkts.Add(pkts)
	x.count.inBytes.Add(bytes)
}
