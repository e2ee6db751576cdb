package rawsock

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket returns a non-blocking TCP socket of family IPv4, if v4 is true, else IPv6. Errors here and below are syscall.Errno.
func Socket(v4 bool) (fd int, err error) {
	family := unix.AF_INET6
	if v4 {
		family = unix.AF_INET
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// Bind is bind(2). The socket must be of the address's family.
func Bind(fd int, a netip.AddrPort) error { return callWithAddr(unix.SYS_BIND, fd, a) }

// Connect is connect(2). The socket must be of the address's family.
func Connect(fd int, a netip.AddrPort) error { return callWithAddr(unix.SYS_CONNECT, fd, a) }

// ConnectState starts a connect or, called again, returns its state: done, in progress (false and no error), or failed.
func ConnectState(fd int, dst netip.AddrPort) (done bool, err error) {
	switch err := Connect(fd, dst); err {
	case nil, unix.EISCONN:
		return true, nil
	case unix.EALREADY, unix.EINPROGRESS, unix.EINTR:
		return false, nil
	default:
		return false, err
	}
}

// ConnectFrom binds fd to src, unless src is invalid, and starts to connect it to dst: it is done, or ConnectState
// returns its later state. A server on this machine has answered before the first call of connect returns; that call
// returns EINPROGRESS nevertheless, and a second one returns the result.
func ConnectFrom(fd int, src, dst netip.AddrPort) (done bool, err error) {
	if src.IsValid() {
		if err := Bind(fd, src); err != nil {
			return false, err
		}
	}
	for range 2 {
		if done, err = ConnectState(fd, dst); done || err != nil {
			break
		}
	}
	return done, err
}

// IsSelf reports whether a socket that was connected to dst is connected to itself, which TCP allows: a port on which nothing
// listens may be the one that the kernel chose for the socket (RFC 9293 3.5, simultaneous open).
func IsSelf(fd int, dst netip.AddrPort) bool { return LocalAddr(fd) == dst }

func callWithAddr(call uintptr, fd int, a netip.AddrPort) error {
	var raw Addr
	n := raw.Set(a, !a.Addr().Is4(), 0)
	if _, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(n)); errno != 0 {
		return errno
	}
	return nil
}

// NoDelay sets TCP_NODELAY on a forwarding socket: Nagle's algorithm is up to the sender's kernel. Sockets accepted from a
// listener inherit it.
func NoDelay(fd int) {
	on := int32(1)
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, uintptr(unsafe.Pointer(&on)), unsafe.Sizeof(on), 0)
}

// ResetOnClose makes close(2) send RST (SO_LINGER with time 0).
func ResetOnClose(fd int) {
	now := unix.Linger{Onoff: 1}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now), 0)
}

// Reset closes a socket and sends RST.
func Reset(fd int) {
	ResetOnClose(fd)
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// Accept returns a non-blocking socket of a connection accepted from a non-blocking listener, with the peer's address. The error
// unix.EAGAIN means that there is no connection. Connections aborted before they were accepted are skipped.
func Accept(listener int) (fd int, peer netip.AddrPort, err error) {
	var raw Addr
	size := uint32(unsafe.Sizeof(raw))
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			peer, _ = raw.Get() // without the scope, as the guest never gets a link-local address of the host's links
			return int(n), peer, nil
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return -1, netip.AddrPort{}, errno
		}
	}
}

// LocalAddr returns the socket's local address, or the zero value if getsockname(2) fails.
func LocalAddr(fd int) netip.AddrPort {
	var raw Addr
	size := uint32(unsafe.Sizeof(raw))
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	a, _ := raw.Get()
	return a
}
