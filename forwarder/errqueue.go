package forwarder

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/stack"
)

// extendedErrLen is the size of struct sock_extended_err, before the offender's address (include/uapi/linux/errqueue.h).
const extendedErrLen = 16

// QueuedError is one message of a socket's error queue: a struct sock_extended_err (ip(7), IP_RECVERR) with the address
// behind it.
type QueuedError struct {
	Errno              unix.Errno
	Origin, Type, Code uint8
	Info               uint32     // MTU
	Offender           netip.Addr // the sender of the ICMP error; zero when unknown
}

// Parse reads the data of an IP_RECVERR or IPV6_RECVERR control message; what is too short leaves q as it is.
func (q *QueuedError) Parse(b []byte) {
	if len(b) < extendedErrLen {
		return
	}
	// struct: errno u32, origin u8, type u8, code u8, pad u8, info u32, data u32
	*q = QueuedError{Errno: unix.Errno(binary.NativeEndian.Uint32(b)), Origin: b[4], Type: b[5], Code: b[6], Info: binary.NativeEndian.Uint32(b[8:])}
	b = b[extendedErrLen:]
	if len(b) < 2 {
		return
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= unix.SizeofSockaddrInet4:
		q.Offender = netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= unix.SizeofSockaddrInet6:
		q.Offender = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
}

// FromNetwork reports whether the error is an ICMP or ICMPv6 message and not one of the host's kernel itself.
func (q *QueuedError) FromNetwork() bool {
	return q.Origin == unix.SO_EE_ORIGIN_ICMP || q.Origin == unix.SO_EE_ORIGIN_ICMP6
}

// ICMP is the error in the address family of the guest's flow: as it was received, or, where the host's side is of the other
// family, the one with the same meaning.
func (q *QueuedError) ICMP(v4 bool) stack.ICMPError {
	if v4 == (q.Origin == unix.SO_EE_ORIGIN_ICMP) {
		e := stack.ICMPError{Type: q.Type, Code: q.Code}
		if v4 && q.Type == stack.ICMP4Unreachable && q.Code == stack.ICMP4FragNeeded || !v4 && q.Type == stack.ICMP6TooBig {
			e.MTU = q.Info
		}
		return e
	}
	if q.Errno == unix.EMSGSIZE {
		return stack.TooBig(v4, q.Info)
	}
	if e, ok := RefusalOf(q.Errno, flow.UDP, !v4, v4).ICMP(); ok {
		return e
	}
	return stack.HostUnreachable(v4)
}

// unreachable reports whether the error is one that ends a TCP connect: "destination unreachable", except "fragmentation needed".
func (q *QueuedError) unreachable(v4 bool) bool {
	if v4 {
		return q.Origin == unix.SO_EE_ORIGIN_ICMP && q.Type == stack.ICMP4Unreachable && q.Code != stack.ICMP4FragNeeded
	}
	return q.Origin == unix.SO_EE_ORIGIN_ICMP6 && q.Type == stack.ICMP6Unreachable
}

// connectError reads from the error queue of fd the ICMP error that has ended a connect; nil: there is none.
func connectError(fd int, v4 bool) *QueuedError {
	var oob [256]byte
	var data [64]byte
	for {
		_, n, _, _, err := unix.Recvmsg(fd, data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return nil
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			return nil
		}
		for _, m := range msgs {
			is4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
			is6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
			if v4 && !is4 || !v4 && !is6 {
				continue
			}
			var q QueuedError
			if q.Parse(m.Data); q.unreachable(v4) {
				return &q
			}
		}
	}
}

// QueueErrors enables (1) or disables (0) the error queue of a TCP socket. The queue holds the ICMP error that ended a connect.
// It must be disabled on an established connection, where temporary ICMP errors would become errors of the socket.
func QueueErrors(fd int, v4 bool, on int) {
	level, recverr := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if v4 {
		level, recverr = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	_ = unix.SetsockoptInt(fd, level, recverr, on)
}
