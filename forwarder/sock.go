package forwarder

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls that every connection makes, raw. x/sys asks for the protocol of a socket each time it reads an address of one,
// and announces to the scheduler what cannot block. The scheduler's patience with an announced call is 20 µs, and a connect in
// which the whole handshake with a neighbour takes place lasts longer: the slot would go to another thread, which has to be
// woken, in the middle of each dial.

// tcpSocket makes a non-blocking socket.
func tcpSocket(v4 bool) (fd int, err error) {
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

func bindFD(fd int, a netip.AddrPort) error    { return giveAddress(unix.SYS_BIND, fd, a) }
func connectFD(fd int, a netip.AddrPort) error { return giveAddress(unix.SYS_CONNECT, fd, a) }

// connectState starts a connect, or asks how it goes: done, under way, or failed.
func connectState(fd int, dst netip.AddrPort) (done bool, err error) {
	switch err := connectFD(fd, dst); err {
	case nil, unix.EISCONN:
		return true, nil
	case unix.EALREADY, unix.EINPROGRESS, unix.EINTR:
		return false, nil
	default:
		return false, err
	}
}

func giveAddress(call uintptr, fd int, a netip.AddrPort) error {
	var raw rawAddr
	n := raw.set(a, !a.Addr().Is4(), 0)
	if _, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(n)); errno != 0 {
		return errno
	}
	return nil
}

// noDelay: both ends have a Nagle of their own.
func noDelay(fd int) {
	on := int32(1)
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, uintptr(unsafe.Pointer(&on)), unsafe.Sizeof(on), 0)
}

// resetOnClose has close(2) send RST.
func resetOnClose(fd int) {
	now := unix.Linger{Onoff: 1}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now), 0)
}

// resetFD closes a socket with RST.
func resetFD(fd int) {
	resetOnClose(fd)
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// acceptFD takes a connection from a non-blocking listener.
func acceptFD(listener int) (fd int, peer netip.AddrPort, err error) {
	var sa unix.RawSockaddrInet6 // the larger of the two
	size := uint32(unsafe.Sizeof(sa))
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			return int(n), tcpAddr(&sa), nil
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return -1, netip.AddrPort{}, errno
		}
	}
}

// localAddr is the socket's own address; the zero value when it has none.
func localAddr(fd int) netip.AddrPort {
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return tcpAddr(&sa)
}

// tcpAddr leaves out the zone: what needs one is never told to the guest.
func tcpAddr(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkOrder(v4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), networkOrder(sa.Port))
	}
	return netip.AddrPort{}
}

// networkOrder reads a port as it lies in a socket address.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
