package netns

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// transparentSocket opens a TCP socket that may bind to any address (IP_TRANSPARENT), with the mark. It is ready to be
// joined with a socket of the host: Nagle's algorithm off, since the sending kernel has applied its own; keep-alive at the
// system's interval; urgent data in line.
func transparentSocket(ipv6 bool, mark int) (fd int, err error) {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if ipv6 {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if fd, err = openSocket(ipv6, unix.SOCK_STREAM); err != nil {
		return -1, err
	}
	options := []struct{ level, name, value int }{
		{level, option, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_MARK, mark},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
	}
	if ipv6 {
		options = append(options, struct{ level, name, value int }{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// openSocket opens a plain socket of the calling thread's namespace, non-blocking. kind is SOCK_STREAM (TCP, and not MPTCP,
// which package net would choose) or SOCK_DGRAM (UDP).
func openSocket(ipv6 bool, kind int) (fd int, err error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// redirectListener listens on an address that the namespace does not have. Accepted sockets inherit its options.
func redirectListener(a netip.AddrPort) (f *os.File, err error) {
	fd, err := transparentSocket(a.Addr().Is6(), markAccepted)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if a.Addr().Is4() {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	} else {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
	}
	if err == nil {
		err = unix.Listen(fd, redirectBacklog)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}
