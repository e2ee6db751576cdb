package rootlessport

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/netns"
)

// threadDialer opens sockets on a thread in the container's namespace. It implements dialer.
type threadDialer struct{ thread *netns.Thread }

// dial connects to an address of the namespace, over "tcp" or "udp".
func (d threadDialer) dial(ctx context.Context, proto string, to netip.AddrPort) (net.Conn, error) {
	kind := unix.SOCK_STREAM
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := d.thread.Socket(to.Addr(), kind)
	if err != nil {
		return nil, err
	}
	return connectSocket(ctx, fd, to)
}

// connectSocket connects the non-blocking socket fd. It owns fd: the returned connection has a duplicate.
func connectSocket(ctx context.Context, fd int, to netip.AddrPort) (net.Conn, error) {
	err := rawsock.Connect(fd, to)
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close() // net.FileConn duplicates it
	if err == unix.EINPROGRESS {
		err = connected(ctx, f)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}

// connected waits until f is connected or its connect has failed.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cause error
	// Write calls the function once before it waits, and then after each event. An event before the file was registered with Go's
	// poller is not reported, so each call reads the state of the socket.
	err = rc.Write(func(fd uintptr) bool {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			err = unix.Errno(n)
		}
		if err == nil {
			if _, perr := unix.Getpeername(int(fd)); perr == unix.ENOTCONN {
				return false // not connected yet
			}
		}
		cause = err
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return cause
}
