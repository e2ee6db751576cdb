package forwarder

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

const (
	// errorQuote is how much of the packet an ICMP error is about we take: what a whole ICMPv6 error may hold (RFC
	// 4443 2.4(c)); an ICMP one quotes less (RFC 1812 4.3.2.3).
	errorQuote = 1280
	// errorBatch bounds the errors read at once, so that a flood of them starves no datagrams.
	errorBatch = 64

	// ee_origin of struct sock_extended_err (include/uapi/linux/errqueue.h).
	originICMP  = 2
	originICMP6 = 3

	extendedErrLen = 16 // struct sock_extended_err, before the offender's address
)

// queuedError is a struct sock_extended_err with the address behind it.
type queuedError struct {
	errno             unix.Errno
	origin, typ, code uint8
	info              uint32     // MTU
	offender          netip.Addr // who sent the ICMP error; zero when unknown
}

// parse reads the data of an IP_RECVERR or IPV6_RECVERR control message.
func (q *queuedError) parse(b []byte) {
	if len(b) < extendedErrLen {
		return
	}
	*q = queuedError{errno: unix.Errno(binary.NativeEndian.Uint32(b)), origin: b[4], typ: b[5], code: b[6], info: binary.NativeEndian.Uint32(b[8:])}
	b = b[extendedErrLen:]
	if len(b) < 2 {
		return
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= unix.SizeofSockaddrInet4:
		q.offender = netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= unix.SizeofSockaddrInet6:
		q.offender = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
}

// readErrors empties the error queue of s and tells the guest.
func (x *Datagrams) readErrors(s *socket, r *receiver) {
	for range errorBatch {
		var name rawsock.Addr
		iov := unix.Iovec{Base: &r.errBuf[0]}
		iov.SetLen(len(r.errBuf))
		m := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: unix.SizeofSockaddrInet6, Iov: &iov, Control: &r.control[0][0]}
		m.SetIovlen(1)
		m.SetControllen(controlSpace)
		s.recvMu.Lock()
		if s.recvClosed {
			s.recvMu.Unlock()
			return
		}
		n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&m)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		s.recvMu.Unlock()
		if errno != 0 {
			return
		}
		c := parseControl(r.control[0][:min(uint64(m.Controllen), controlSpace)])
		if c.err.origin != originICMP && c.err.origin != originICMP6 {
			continue // of the host's kernel itself: send has returned it
		}
		peer, _ := name.Get()
		x.hostError(s, peer, r.errBuf[:n], c.err)
	}
}

// hostError tells the guest about an ICMP error that one of its packets met. sent is the beginning of that packet's
// payload, for echo with its header.
func (x *Datagrams) hostError(s *socket, peer netip.AddrPort, sent []byte, q queuedError) {
	x.mu.Lock()
	f := x.peers[peerKey{s, peer}]
	if f == nil {
		x.unlock()
		x.count.drop(DropUnknownError)
		return
	}
	key, gateway := f.key, f.gateway
	if f.s.pub == nil && f.alt.IsValid() && q.errno == unix.ECONNREFUSED {
		x.tryAlt(f, sent)
		return
	}
	x.unlock()

	e := q.icmp(key.remote.Addr().Is4())
	e.From = offender(q.offender, peer.Addr(), key.remote.Addr(), gateway)
	if key.proto == protoEcho {
		x.echoError(key, sent, e)
		return
	}
	x.tellUDP(stack.Flow{Src: key.guest, Dst: key.remote}, sent, e)
}

// offender returns what the guest is told of who sent an error: the remote by the name the guest knows, the gateway
// (the zero value) where the host itself stands for it.
func offender(who, peer, remote netip.Addr, gateway bool) netip.Addr {
	switch {
	case gateway || !who.IsValid() || who.IsLoopback() || who.IsUnspecified() || who.Is4() != remote.Is4():
		return netip.Addr{}
	case who == peer:
		return remote
	}
	return who
}

// icmp returns the error in the family the guest speaks: as it came, or, where the host's side is of the other family,
// the one of the same meaning.
func (q *queuedError) icmp(v4 bool) stack.ICMPError {
	if v4 == (q.origin == originICMP) {
		e := stack.ICMPError{Type: q.typ, Code: q.code}
		if v4 && q.typ == icmp4Unreachable && q.code == icmp4FragNeeded || !v4 && q.typ == icmp6TooBig {
			e.MTU = q.info
		}
		return e
	}
	if q.errno == unix.EMSGSIZE {
		return tooBig(v4, q.info)
	}
	e, ok := errnoError(q.errno, v4)
	if !ok {
		e = hostUnreachable(v4)
	}
	return e
}

// tryAlt moves a flow whose first address refused to the other one: a service of the host may listen on one family
// only. sent goes out again, unless the error quoted only a part of it. mu is held, and released.
func (x *Datagrams) tryAlt(f *datagramFlow, sent []byte) {
	key, alt := f.key, f.alt
	whole := len(sent) <= minQuote
	pkts, bytes := f.outPkts, f.outBytes
	v := policy.Verdict{Action: policy.Allow, Gateway: f.gateway, Dst: alt}
	sent = append([]byte(nil), sent...)
	x.removeFlow(f)
	x.unlock()
	t, err := x.open(key, v, int(pkts), int(bytes))
	if err != nil || !whole {
		return
	}
	_ = t.s.send(&t, nil, sent, 0, options(0, 0, false)) // as lost as the first, if it fails
}

// minQuote is a payload that every ICMP error of Linux quotes whole: 576 bytes less the headers (RFC 1812 4.3.2.3).
const minQuote = 576 - 20 - 8 - 60 - 8

// ICMP and ICMPv6 messages besides those of tcp_dial.go (RFC 792, RFC 1191, RFC 4443).
const (
	icmp4Unreachable = 3
	icmp4FragNeeded  = 4
	icmp6TooBig      = 2
)

func portUnreachable(v4 bool) stack.ICMPError {
	if v4 {
		return stack.ICMPError{Type: icmp4Unreachable, Code: 3}
	}
	return stack.ICMPError{Type: 1, Code: 4}
}

func timeExceeded(v4 bool) stack.ICMPError {
	if v4 {
		return stack.ICMPError{Type: 11, Code: 0}
	}
	return stack.ICMPError{Type: 3, Code: 0}
}

func tooBig(v4 bool, mtu uint32) stack.ICMPError {
	if v4 {
		return stack.ICMPError{Type: icmp4Unreachable, Code: icmp4FragNeeded, MTU: mtu}
	}
	return stack.ICMPError{Type: icmp6TooBig, Code: 0, MTU: mtu}
}

// verdictError is how the guest is told of a flow that policy does not allow; false: it is not.
func verdictError(a policy.Action, v4 bool) (stack.ICMPError, bool) {
	switch a {
	case policy.Refuse:
		return portUnreachable(v4), true
	case policy.Prohibit:
		return prohibited(v4), true
	case policy.Unreachable:
		return hostUnreachable(v4), true
	case policy.NoRoute:
		return netUnreachable(v4), true
	}
	return stack.ICMPError{}, false
}

// errnoError is the error a router with the host's routes and filters would have sent; false where none fits.
func errnoError(err error, v4 bool) (stack.ICMPError, bool) {
	switch err {
	case unix.ECONNREFUSED:
		return portUnreachable(v4), true
	case unix.EHOSTUNREACH, unix.EHOSTDOWN:
		return hostUnreachable(v4), true
	case unix.ENETUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return netUnreachable(v4), true
	case unix.EACCES, unix.EPERM:
		return prohibited(v4), true
	}
	return stack.ICMPError{}, false
}
