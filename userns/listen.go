package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenBody asks for sockets on the namespace's own loopback, all of one protocol.
type listenBody struct {
	Proto string   `json:"proto"` // "tcp" or "udp"
	Ports []uint16 `json:"ports"`
}

const (
	// listenMost sockets are asked for at once: their descriptors go into one message (SCM_MAX_FD is 253), and as many
	// are open in the other process for a moment, whose limit may be the usual 1024.
	listenMost = 64
	// listenBacklog is what the kernel cuts to net.core.somaxconn.
	listenBacklog = 4096
)

// Listen makes sockets inside that hear what the namespace sends to the addresses of its lo, and nothing from elsewhere: TCP ones listening, UDP ones bound. Ports below 1024 need no privilege of the caller, the socket being
// made by init. files and errs are parallel to ports, and one of each pair is nil; an error is an errno of bind(2). The
// files are non-blocking and the caller's. err means that nothing was made.
func (s *Sandbox) Listen(ctx context.Context, proto string, ports []uint16) (files []*os.File, errs []error, err error) {
	for len(ports) > 0 {
		n := min(len(ports), listenMost)
		r, err := s.request(ctx, &message{Type: msgListen, Listen: &listenBody{Proto: proto, Ports: ports[:n]}}, msgListening)
		if err == nil && (len(r.m.Errnos) != n || len(r.fds) != countZero(r.m.Errnos)) {
			closeAll(r.fds)
			err = &Error{Op: "listen inside", Err: fmt.Errorf("%w: %d descriptors", errProtocol, len(r.fds))}
		}
		if err != nil {
			closeAll(files)
			return nil, nil, err
		}
		fds := r.fds
		for _, e := range r.m.Errnos {
			if e != 0 {
				files, errs = append(files, nil), append(errs, syscall.Errno(e))
				continue
			}
			files, errs = append(files, fds[0]), append(errs, nil)
			fds = fds[1:]
		}
		ports = ports[n:]
	}
	return files, errs, nil
}

func countZero(list []int) (n int) {
	for _, e := range list {
		if e == 0 {
			n++
		}
	}
	return n
}

// listen runs inside.
func listen(b *listenBody) (fds []*os.File, errnos []int, err error) {
	if len(b.Ports) > listenMost || b.Proto != "tcp" && b.Proto != "udp" {
		return nil, nil, &Error{Op: "listen", Err: errProtocol}
	}
	for _, port := range b.Ports {
		f, err := loopbackSocket(b.Proto, port)
		if err != nil {
			errno := unix.EIO
			errors.As(err, &errno)
			errnos = append(errnos, int(errno))
			continue
		}
		fds, errnos = append(fds, f), append(errnos, 0)
	}
	return fds, errnos, nil
}

// loopbackSocket is one socket for both families, or for IPv4 where there is no other. Bound to lo, it is
// out of reach for whoever is beyond the namespace's links.
func loopbackSocket(proto string, port uint16) (*os.File, error) {
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
		// A port whose last connections are not forgotten yet may be had again.
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
