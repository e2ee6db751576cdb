package forwarder

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

// dialError is a failed connection attempt: the errno, and where one came the ICMP error behind it.
type dialError struct {
	errno syscall.Errno
	icmp  *stack.ICMPError
}

func (e *dialError) Error() string { return "dial: " + e.errno.Error() }
func (e *dialError) Unwrap() error { return e.errno }

// hostConn is a TCP socket of the host on the netpoller.
type hostConn struct {
	f  *os.File
	rc syscall.RawConn
}

// newHostConn takes over fd, which must be non-blocking.
func newHostConn(fd int) (*hostConn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &hostConn{f: f, rc: rc}, nil
}

// startDial makes a non-blocking socket and starts to connect it: done, or connectState tells how that goes. The error is a *dialError.
func startDial(from egress, dst netip.AddrPort, tos uint8) (fd int, done bool, err error) {
	v4 := dst.Addr().Is4()
	if fd, err = rawsock.Socket(v4); err != nil {
		e := &dialError{errno: err.(syscall.Errno)}
		if e.errno == syscall.EAFNOSUPPORT { // a kernel without IPv6
			none := netUnreachable(v4)
			e.icmp = &none
		}
		return -1, false, e
	}
	if tos &^= 3; tos != 0 { // the two ECN bits of a TCP packet are its own kernel's
		if v4 {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(tos))
		} else {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(tos))
		}
	}
	if err = bindSource(fd, from); err != nil {
		unix.Close(fd)
		return -1, false, &dialError{errno: err.(syscall.Errno)}
	}
	// A neighbour's kernel answers before the first call returns, which says nevertheless that it is under way.
	for range 2 {
		if done, err = rawsock.ConnectState(fd, dst); done || err != nil {
			break
		}
	}
	switch {
	case err != nil:
		err = withICMP(fd, err, dst)
		unix.Close(fd)
		return -1, false, err
	case !done:
		rememberErrors(fd, v4, 1)
	}
	return fd, done, nil
}

// withICMP adds to a failed connect what the error queue knows of it (ip(7), IP_RECVERR).
func withICMP(fd int, err error, dst netip.AddrPort) *dialError {
	errno, ok := err.(syscall.Errno)
	if !ok {
		errno = syscall.EIO
	}
	return &dialError{errno: errno, icmp: socketICMP(fd, errno, dst.Addr().Is4())}
}

// dialHost connects to dst. It does what net.Dialer does, but keeps the socket after a failure to read the ICMP error that
// caused it.
func dialHost(ctx context.Context, from egress, dst netip.AddrPort, tos uint8) (*hostConn, error) {
	fd, done, err := startDial(from, dst, tos)
	if err != nil {
		return nil, err
	}
	h, err := newHostConn(fd)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = h.f.SetDeadline(time.Unix(1, 0)) })
	var failure error
	werr := h.rc.Write(func(fd uintptr) bool {
		// The first call comes before any wait, and an event before it is lost: only the socket's state counts.
		if done {
			return true
		}
		ok, err := rawsock.ConnectState(int(fd), dst)
		if err != nil {
			failure = withICMP(int(fd), err, dst)
		}
		return ok || err != nil
	})
	if stop(); failure == nil && (werr != nil || ctx.Err() != nil) {
		failure = &dialError{errno: syscall.ETIMEDOUT}
	}
	if failure != nil {
		h.f.Close()
		return nil, failure
	}
	if isSelf(fd, dst) {
		h.reset()
		return nil, &dialError{errno: syscall.ECONNREFUSED}
	}
	_ = h.rc.Control(func(fd uintptr) { tuneHost(int(fd)); rememberErrors(int(fd), dst.Addr().Is4(), 0) })
	return h, nil
}

// egress is how packets leave the host. The zero value leaves that to its routes.
type egress struct {
	addr  netip.Addr
	index int // of an interface
}

// egressTo is that of packets to dst: what is sent to the host's loopback stays there.
func (a *Addresses) egressTo(dst netip.Addr) egress {
	switch {
	case dst.IsLoopback():
		return egress{}
	case dst.Is4():
		return egress{a.Source4, a.Interface4}
	}
	return egress{a.Source6, a.Interface6}
}

// bindSource binds fd to an interface, and to an address but for the port, which connect chooses and then may use again
// for another destination (ip(7), IP_BIND_ADDRESS_NO_PORT).
func bindSource(fd int, way egress) error {
	if way.index != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, way.index); err != nil {
			return err
		}
	}
	from := way.addr
	if !from.IsValid() {
		return nil
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	return rawsock.Bind(fd, netip.AddrPortFrom(from, 0))
}

// isSelf says whether a socket connected to dst is connected to itself, which TCP allows: a port of this host on which
// nobody listens may be the one that the kernel chose for the socket (RFC 9293 3.5, simultaneous open).
func isSelf(fd int, dst netip.AddrPort) bool {
	r := localPorts()
	return dst.Port() >= r.first && dst.Port() <= r.last && rawsock.LocalAddr(fd) == dst
}

type portRange struct{ first, last uint16 }

// localPorts is what the kernel chooses from (ip(7), ip_local_port_range); all ports when that is not known.
var localPorts = sync.OnceValue(func() portRange {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	var r portRange
	if err == nil {
		_, err = fmt.Sscan(string(text), &r.first, &r.last)
	}
	if err != nil {
		return portRange{1, 65535}
	}
	return r
})

// tuneHost sets what a joined socket needs: no Nagle (the guest's kernel has its own), keep-alive at the system's pace so
// that a vanished peer is noticed on behalf of the guest, urgent data in line. A listener passes it on to what it accepts.
func tuneHost(fd int) {
	rawsock.NoDelay(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}

// rememberErrors turns the error queue on or off: it tells which ICMP error ended a connect, but on an established
// connection it would make failures of passing errors.
func rememberErrors(fd int, v4 bool, on int) {
	level, recverr := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if v4 {
		level, recverr = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	_ = unix.SetsockoptInt(fd, level, recverr, on)
}

// close closes the socket; what was not read makes it a reset, as for any program.
func (h *hostConn) close() { _ = h.f.Close() }

// reset closes the socket with RST. Without it TIME_WAIT sockets pile up on the host and slow every connect.
func (h *hostConn) reset() {
	_ = h.rc.Control(func(fd uintptr) { rawsock.ResetOnClose(int(fd)) })
	_ = h.f.Close()
}

// wake makes both directions return from a wait.
func (h *hostConn) wake() { _ = h.f.SetDeadline(time.Unix(1, 0)) }

// wakeReader makes a waiting reader return; settleReader ends that.
func (h *hostConn) wakeReader()   { _ = h.f.SetReadDeadline(time.Unix(1, 0)) }
func (h *hostConn) settleReader() { _ = h.f.SetReadDeadline(time.Time{}) }

// expectDeath shortens keep-alive: one side has closed, and may have vanished with it.
func (h *hostConn) expectDeath() {
	_ = h.rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, halfClosedIdle)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, halfClosedIdle)
	})
}

// halfClosedIdle is the keep-alive time, in seconds, of a connection one side of which was closed.
const halfClosedIdle = 60

// ICMP and ICMPv6 "destination unreachable" codes (RFC 792, RFC 1812 5.2.7.1, RFC 4443 3.1).
func hostUnreachable(v4 bool) stack.ICMPError {
	if v4 {
		return stack.ICMPError{Type: 3, Code: 1}
	}
	return stack.ICMPError{Type: 1, Code: 3} // address unreachable
}

func netUnreachable(v4 bool) stack.ICMPError {
	if v4 {
		return stack.ICMPError{Type: 3, Code: 0}
	}
	return stack.ICMPError{Type: 1, Code: 0} // no route
}

func prohibited(v4 bool) stack.ICMPError {
	if v4 {
		return stack.ICMPError{Type: 3, Code: 13}
	}
	return stack.ICMPError{Type: 1, Code: 1}
}

// socketICMP finds the ICMP error behind a failed connect: from the socket's error queue when it came from the
// network, else the one a router with the host's routing table would have sent.
func socketICMP(fd int, errno syscall.Errno, v4 bool) *stack.ICMPError {
	if e, ok := readSocketICMP(fd, v4); ok {
		return &e
	}
	var e stack.ICMPError
	switch errno {
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		e = hostUnreachable(v4)
	case syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EINVAL:
		e = netUnreachable(v4)
	case syscall.EADDRNOTAVAIL: // no address of this family; but on IPv4 no free local port, which passes
		if v4 {
			return nil
		}
		e = netUnreachable(v4)
	case syscall.EACCES, syscall.EPERM:
		e = prohibited(v4)
	default:
		return nil
	}
	return &e
}

// readSocketICMP reads the error queue of fd (struct sock_extended_err, include/uapi/linux/errqueue.h).
func readSocketICMP(fd int, v4 bool) (stack.ICMPError, bool) {
	const (
		originICMP  = 2
		originICMP6 = 3
	)
	var oob [256]byte
	var data [64]byte
	for {
		_, n, _, _, err := unix.Recvmsg(fd, data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return stack.ICMPError{}, false
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			return stack.ICMPError{}, false
		}
		for _, m := range msgs {
			ours := v4 && m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR ||
				!v4 && m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
			if !ours || len(m.Data) < 16 {
				continue
			}
			// struct: errno u32, origin u8, type u8, code u8, pad u8, info u32, data u32
			origin, typ, code := m.Data[4], m.Data[5], m.Data[6]
			if v4 && origin == originICMP && typ == 3 && code != 4 /* that is about size */ || !v4 && origin == originICMP6 && typ == 1 {
				return stack.ICMPError{Type: typ, Code: code}, true
			}
		}
	}
}
