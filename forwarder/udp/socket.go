package udp

import (
	"container/list"
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/rawsock"
)

const (
	// socketBuffer is requested in both directions (the kernel grants at most net.core.[rw]mem_max): sixteen GSO batches
	// of 64 KiB. It is a bound, not memory set aside.
	socketBuffer = 1 << 20
	// sendTries: another error may become pending between two of them.
	sendTries = 4
	// maxSegments is the kernel's UDP_MAX_SEGMENTS before Linux 6.9 (include/linux/udp.h), 128 since.
	maxSegments = 64
	// echoHeaderLen is that of an ICMP or ICMPv6 echo message (RFC 792, RFC 4443 4.1).
	echoHeaderLen = 8

	icmp4EchoReply, icmp4EchoRequest = 0, 8
	icmp6EchoRequest, icmp6EchoReply = 128, 129
)

var (
	errSocketClosed = errors.New("forwarder: socket closed")
	// errRulesChanged means that a flow was allowed when it was decided and is not allowed any more when it is in the table.
	errRulesChanged = errors.New("forwarder: the rules have changed")
)

// socket is a host socket. Its flows, groups and elem are guarded by table.mu.
type socket struct {
	fd   int
	v6   bool      // AF_INET6
	dual bool      // AF_INET6 that carries IPv4 too: passed in by the caller
	key  socketKey // zero for a published port
	pub  *UDPPort  // nil for an outbound socket
	elem *list.Element
	// flows in the order of their last use, the latest first.
	flows       list.List
	groups      int  // flows to multicast groups
	groupsReady bool // the options for them are set

	// sendMu orders the options and the packets that need them.
	sendMu     lockrank.Mutex
	sendClosed bool
	opts       [2]sendOptions // as the kernel has them, IPv4 and IPv6
	sends      int            // calls of sendmsg and sendmmsg

	// recvMu keeps the descriptor open while it is read.
	recvMu     lockrank.Mutex
	recvClosed bool
}

// sendOptions are the properties of a packet that are options of the socket; -1 is unknown.
type sendOptions struct{ ttl, tos, pmtu int }

var unknownOptions = sendOptions{-1, -1, -1}

// keepTTL in sendOptions leaves the option for the TTL as it is: a control message has the packet's.
const keepTTL = -2

// newSocket returns a socket without a descriptor.
func newSocket() *socket {
	s := &socket{opts: [2]sendOptions{unknownOptions, unknownOptions}}
	s.sendMu.SetRank(lockrank.UDPSend)
	s.recvMu.SetRank(lockrank.UDPReceive)
	return s
}

// openSocket makes the outbound socket for k and gives it the guest's port where that is free, see doc.go.
func (x *Path) openSocket(k socketKey) (*socket, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_UDP
	if k.v6 {
		family = unix.AF_INET6
	}
	if k.proto == protoEcho {
		proto = unix.IPPROTO_ICMP
		if k.v6 {
			proto = unix.IPPROTO_ICMPV6
		}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	s := newSocket()
	s.fd, s.v6, s.key = fd, k.v6, k
	if k.v6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err := s.prepare(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	p := k.guest.Port()
	if k.proto == protoEcho || x.localPorts.Contains(p) {
		var raw rawsock.Addr
		wildcard := netip.IPv4Unspecified()
		if k.v6 {
			wildcard = netip.IPv6Unspecified()
		}
		n := raw.Set(netip.AddrPortFrom(wildcard, p), k.v6, 0)
		_, _, _ = unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(n)) // taken: the kernel chooses
	}
	return s, nil
}

// prepare sets the options that every socket of ours has. Only the error queue is mandatory: without it a refused datagram could
// not be distinguished from an unanswered one.
func (s *socket) prepare() error {
	var err error
	if s.v6 {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	}
	if !s.v6 || s.dual {
		err = errors.Join(err, unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
	}
	if s.key.proto != protoEcho {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // since Linux 5.0; without it they are received separately
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	return err
}

// close waits for a send or receive under way; neither blocks.
func (s *socket) close() {
	s.sendMu.Lock()
	s.sendClosed = true
	s.sendMu.Unlock()
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	if !s.recvClosed {
		s.recvClosed = true
		_ = unix.Close(s.fd)
	}
}

func options(ttl, tos uint8, df bool) sendOptions {
	o := sendOptions{ttl: int(ttl), tos: int(tos), pmtu: unix.IP_PMTUDISC_DONT} // IPv6's have the same values
	if ttl == 0 {
		o.ttl = 64 // the meaning of 0 in stack.Datagram
	}
	if df {
		o.pmtu = unix.IP_PMTUDISC_DO
	}
	return o
}

// send sends head and body as one packet. The errors are the kernel's, or errSocketClosed. It allocates nothing.
func (s *socket) send(t *target, head, body []byte, gso uint16, o sendOptions) error {
	var (
		name rawsock.Addr
		iov  [2]unix.Iovec
		oob  controlBuffer
		m    unix.Msghdr
	)
	m.Name, m.Namelen = (*byte)(unsafe.Pointer(&name)), name.Set(t.peer, s.v6, t.scope)
	n := 0
	for _, b := range [2][]byte{head, body} {
		if len(b) > 0 {
			iov[n].Base = &b[0]
			iov[n].SetLen(len(b))
			n++
		}
	}
	m.Iov = &iov[0]
	m.SetIovlen(n)
	if gso > 0 {
		binary.NativeEndian.PutUint16(oob.add(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), gso)
	}
	if t.local.IsValid() || t.scope != 0 {
		oob.addLocal(t.local, t.scope, s.v6)
	}
	if t.group {
		oob.addTTL(&o, s.v6)
	}
	if oob.n > 0 {
		m.Control = &oob.buf[0]
		m.SetControllen(oob.n)
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendClosed {
		return errSocketClosed
	}
	s.setOptions(o, t.peer.Addr().Is6())
	var err unix.Errno
	for range sendTries {
		switch err = s.sendmsg(&m); err {
		case 0:
			return nil
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EINVAL, unix.EBADF:
			return err
		}
		// It may be the pending error of an earlier packet to any peer; that error is in the error queue, and was cleared by
		// this call. An error of this packet is returned again by the next try.
	}
	return err
}

// sendmsg is a raw system call: it cannot block, and after 20 µs in an announced call, which sending fragments takes, Go's
// scheduler would give the P to another thread. sendMu is held.
func (s *socket) sendmsg(m *unix.Msghdr) unix.Errno {
	for {
		s.sends++
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// setOptions sets those of the options o that differ from the socket's. sendMu is held.
func (s *socket) setOptions(o sendOptions, v6 bool) {
	level, ttl, tos, pmtu, have := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS, unix.IP_MTU_DISCOVER, &s.opts[0]
	if v6 {
		level, ttl, tos, pmtu, have = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS, unix.IPV6_MTU_DISCOVER, &s.opts[1]
	}
	if o.ttl == keepTTL {
		o.ttl = have.ttl
	}
	if o == *have {
		return
	}
	if o.ttl != have.ttl {
		_ = unix.SetsockoptInt(s.fd, level, ttl, o.ttl)
	}
	if o.tos != have.tos {
		_ = unix.SetsockoptInt(s.fd, level, tos, o.tos)
	}
	if o.pmtu != have.pmtu {
		_ = unix.SetsockoptInt(s.fd, level, pmtu, o.pmtu)
	}
	*have = o
}

// controlBuffer collects control messages: UDP_SEGMENT, one of the two packet infos, and a TTL.
type controlBuffer struct {
	// Cmsghdr gives the alignment that the kernel requires.
	_   [0]unix.Cmsghdr
	buf [96]byte
	n   int
}

// add appends a message of size bytes and returns them.
func (c *controlBuffer) add(level, typ int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.buf[c.n]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	data := c.buf[c.n+unix.CmsgLen(0):][:size]
	c.n += unix.CmsgSpace(size)
	return data
}

// addLocal makes the packet leave from local, unless that is the zero value, and by the interface scope, unless that is 0
// (ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO).
func (c *controlBuffer) addLocal(local netip.Addr, scope uint32, v6 bool) {
	if !v6 {
		info := unix.Inet4Pktinfo{Ifindex: int32(scope)}
		if local.IsValid() {
			info.Spec_dst = local.As4()
		}
		copy(c.add(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo), (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
		return
	}
	info := unix.Inet6Pktinfo{Ifindex: scope}
	if local.IsValid() {
		info.Addr = local.As16()
	}
	copy(c.add(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
}

// addTTL makes the packet leave with o.ttl, which IP_TTL, the option for unicast, does not do for a multicast group.
func (c *controlBuffer) addTTL(o *sendOptions, v6 bool) {
	level, typ := int32(unix.IPPROTO_IP), int32(unix.IP_TTL)
	if v6 {
		level, typ = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	}
	binary.NativeEndian.PutUint32(c.add(level, typ, 4), uint32(o.ttl))
	o.ttl = keepTTL
}
