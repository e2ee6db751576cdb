package udp

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

const (
	// errorQuote is how many bytes of the packet that caused an ICMP error are read: what a whole ICMPv6 error may hold (RFC
	// 4443 2.4(c)); an ICMP one quotes less (RFC 1812 4.3.2.3).
	errorQuote = 1280
	// errorBatch bounds the errors read at once, so that a flood of them does not delay datagrams.
	errorBatch = 64
)

// readErrors empties the error queue of s and sends the ICMP errors to the guest.
func (x *Path) readErrors(s *socket, r *receiver) {
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
		if !c.err.FromNetwork() {
			continue // of the host's kernel itself: send has returned it
		}
		peer, _ := name.Get()
		x.hostError(s, peer, r.errBuf[:n], c.err)
	}
}

// hostError sends the guest an ICMP error that one of its packets has caused. sent is the beginning of that packet's
// payload, for echo with its header.
func (x *Path) hostError(s *socket, peer netip.AddrPort, sent []byte, q forwarder.QueuedError) {
	x.mu.Lock()
	f := x.peers[peerKey{s: s, peer: peer}]
	if f == nil && s.pub != nil {
		for _, at := range s.pub.guests { // the error does not say which address of ours the packet had
			if f = x.peers[peerKey{s, peer, at}]; f != nil {
				break
			}
		}
	}
	if f == nil {
		x.unlock()
		x.count.drop(DropUnknownError)
		return
	}
	key, gateway := f.keyNow(), f.gateway
	if f.client == nil && f.alt.IsValid() && q.Errno == unix.ECONNREFUSED {
		if x.tryAlt(f, sent) {
			return
		}
	} else {
		x.unlock()
	}

	e := q.ICMP(key.remote.Addr().Is4())
	e.From = offender(q.Offender, peer.Addr(), key.remote.Addr(), gateway)
	if key.proto == protoEcho {
		x.echoError(key, sent, e)
		return
	}
	x.sendUDPError(stack.Flow{Endpoint: key.endpoint, Src: key.guest, Dst: key.remote}, sent, e)
}

// offender returns the source address of an ICMP error as the guest gets it: for the remote the address to which the guest
// sent, for the host itself the gateway's (the zero value).
func offender(sender, peer, remote netip.Addr, gateway bool) netip.Addr {
	switch {
	case gateway || !sender.IsValid() || sender.IsLoopback() || sender.IsUnspecified() || sender.Is4() != remote.Is4():
		return netip.Addr{}
	case sender == peer:
		return remote
	}
	return sender
}

// tryAlt moves a flow whose address refused to the other one: a service of the host may listen on one family only. The
// first that is tried is that of the guest's own family; from there sent goes out again, unless the error quoted only a part
// of it. When the other one refuses as well, the flow goes back, so that it finds a service that is started later; the guest
// is then to be sent the error, and tryAlt returns false. mu is held, and released.
func (x *Path) tryAlt(f *conversation, sent []byte) (moved bool) {
	key, now := f.key, x.now()
	back := f.onAlt()
	if !back && f.altAt.within(now, refusalPause) {
		x.unlock()
		return false
	}
	whole := len(sent) <= minQuote
	pkts, bytes := f.outPkts, f.outBytes
	v := f.decision
	v.Dst, v.Alt = f.alt, f.peer
	sent = append([]byte(nil), sent...)
	x.removeFlow(f)
	x.unlock()
	t, err := x.open(key, &v, int(pkts), int(bytes))
	if err != nil {
		return !back
	}
	if back {
		x.mu.Lock()
		if f := x.flows[key]; f != nil {
			f.altAt = moment{now, true}
		}
		x.unlock()
		return false
	}
	if whole {
		_ = t.s.send(&t, nil, sent, 0, options(0, 0, false)) // as lost as the first, if it fails
	}
	return true
}

// onAlt says whether the flow goes to the second of two addresses, that of the other family.
func (f *conversation) onAlt() bool { return f.peer.Addr().Is4() != f.key.remote.Addr().Is4() }

// minQuote is a payload that every ICMP error of Linux quotes whole: 576 bytes less the headers (RFC 1812 4.3.2.3).
const minQuote = 576 - 20 - 8 - 60 - 8
