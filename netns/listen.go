package netns

import (
	"os"

	"golang.org/x/sys/unix"
)

// listenBacklog bounds the connections that wait to be accepted; the kernel cuts it to net.core.somaxconn.
const listenBacklog = 4096

// ListenLoopback opens a socket on a port of the namespace's own loopback, in the namespace of the process: one for both
// address families, or for IPv4 where there is no IPv6. proto is "tcp", a listening socket, or "udp", a bound one. It is bound
// to the interface lo, so that other hosts cannot reach it. The error is an errno.
func ListenLoopback(proto string, port uint16) (*os.File, error) {
	f, err := bindLoopback(unix.AF_INET6, proto, port)
	if err == unix.EAFNOSUPPORT || err == unix.EADDRNOTAVAIL {
		f, err = bindLoopback(unix.AF_INET, proto, port)
	}
	return f, err
}

func bindLoopback(family int, proto string, port uint16) (f *os.File, err error) {
	kind := unix.SOCK_STREAM
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
		return nil, err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if family == unix.AF_INET6 {
		sa = &unix.SockaddrInet6{Port: int(port)}
		if err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return nil, err
		}
	}
	if proto == "tcp" {
		// The port can be bound although connections of the last listener are in TIME_WAIT.
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return nil, err
		}
	}
	if err = unix.Bind(fd, sa); err != nil {
		return nil, err
	}
	if proto == "tcp" {
		if err = unix.Listen(fd, listenBacklog); err != nil {
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), proto+" listener"), nil
}
