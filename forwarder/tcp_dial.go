package forwarder

import (
	"context"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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

// dialHost connects a non-blocking socket. It does what net.Dialer does, but keeps the socket after a failure to read
// the ICMP error that caused it from the error queue (ip(7), IP_RECVERR). from is the address it leaves from; the zero
// value leaves that to the host's routes.
func dialHost(ctx context.Context, from netip.Addr, dst netip.AddrPort, tos uint8) (*hostConn, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(nil)
	level, recverr := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if a := dst.Addr(); a.Is4() {
		family, level, recverr = unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVERR
		sa = &unix.SockaddrInet4{Port: int(dst.Port()), Addr: a.As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(dst.Port()), Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		e := &dialError{errno: err.(syscall.Errno)}
		if e.errno == syscall.EAFNOSUPPORT { // a kernel without IPv6
			none := netUnreachable(family == unix.AF_INET)
			e.icmp = &none
		}
		return nil, e
	}
	_ = unix.SetsockoptInt(fd, level, recverr, 1)
	if tos &^= 3; tos != 0 { // the two ECN bits of a TCP packet are its own kernel's
		if family == unix.AF_INET {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(tos))
		} else {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(tos))
		}
	}
	if err := bindSource(fd, from); err != nil {
		unix.Close(fd)
		return nil, &dialError{errno: err.(syscall.Errno)}
	}
	err = unix.Connect(fd, sa)
	if err != nil && err != unix.EINPROGRESS {
		e := &dialError{errno: err.(syscall.Errno)}
		e.icmp = socketICMP(fd, e.errno, family == unix.AF_INET)
		unix.Close(fd)
		return nil, e
	}
	h, herr := newHostConn(fd)
	if herr != nil {
		return nil, herr
	}
	f, rc := h.f, h.rc
	if err == unix.EINPROGRESS {
		stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
		var de *dialError
		werr := rc.Write(func(fd uintptr) bool {
			// The first call comes before any wait, and an event before it is lost: only the socket's state counts.
			errno, gerr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			if gerr != nil {
				errno = int(gerr.(syscall.Errno))
			}
			if errno != 0 {
				de = &dialError{errno: syscall.Errno(errno)}
				de.icmp = socketICMP(int(fd), de.errno, family == unix.AF_INET)
				return true
			}
			_, perr := unix.Getpeername(int(fd))
			return perr == nil
		})
		stop()
		if werr == nil && de == nil && ctx.Err() != nil {
			werr = ctx.Err()
		}
		if de != nil || werr != nil {
			f.Close()
			if de != nil {
				return nil, de
			}
			return nil, &dialError{errno: syscall.ETIMEDOUT}
		}
	}
	if h.self() {
		h.reset()
		return nil, &dialError{errno: syscall.ECONNREFUSED}
	}
	h.tune(level, recverr)
	return h, nil
}

// bindSource binds fd to an address and leaves the port to connect, which then may use one again for another
// destination (ip(7), IP_BIND_ADDRESS_NO_PORT).
func bindSource(fd int, from netip.Addr) error {
	if !from.IsValid() {
		return nil
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if from.Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Addr: from.As16()})
}

// self says whether the socket is connected to itself, which TCP allows: a port of this host on which nobody listens
// may be the one that the kernel chose for the socket (RFC 9293 3.5, simultaneous open).
func (h *hostConn) self() (yes bool) {
	_ = h.rc.Control(func(fd uintptr) {
		local, err1 := unix.Getsockname(int(fd))
		peer, err2 := unix.Getpeername(int(fd))
		yes = err1 == nil && err2 == nil && sockAddr(local) == sockAddr(peer)
	})
	return yes
}

// sockAddr leaves out the zone: what needs one is never told to the guest.
func sockAddr(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// tune sets what a joined socket needs: no Nagle (the guest's kernel has its own), keep-alive at the system's pace so
// that a vanished peer is noticed on behalf of the guest, urgent data in line (netstack has no urgent mode), and no
// error queue: on an established connection IP_RECVERR would turn passing errors into failures.
func (h *hostConn) tune(level, recverr int) {
	_ = h.rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		if recverr != 0 {
			_ = unix.SetsockoptInt(int(fd), level, recverr, 0)
		}
	})
}

// close closes the socket; what was not read makes it a reset, as for any program.
func (h *hostConn) close() { _ = h.f.Close() }

// reset closes the socket with RST. Without it TIME_WAIT sockets pile up on the host and slow every connect.
func (h *hostConn) reset() {
	_ = h.rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
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
