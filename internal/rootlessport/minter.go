package rootlessport

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

// minter makes sockets in a network namespace: a socket belongs to the namespace its thread was in, whoever uses it.
type minter struct {
	requests chan mintRequest
	quit     chan struct{}
	gone     chan struct{}
}

type mintRequest struct {
	family, kind int
	reply        chan minted
}

type minted struct {
	fd  int
	err error
}

// newMinter enters the namespace at path on a thread of its own, which needs the capability to do so over the owner of the
// namespace: Podman starts us as root of that.
func newMinter(path string) (*minter, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m := &minter{requests: make(chan mintRequest), quit: make(chan struct{}), gone: make(chan struct{})}
	entered := make(chan error)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, rather than serve others in that namespace.
		runtime.LockOSThread()
		defer close(m.gone)
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		_ = ns.Close()
		entered <- err
		if err == nil {
			m.run()
		}
	}()
	if err := <-entered; err != nil {
		<-m.gone
		return nil, fmt.Errorf("enter the network namespace %s: %w", path, err)
	}
	return m, nil
}

func (m *minter) run() {
	for {
		select {
		case r := <-m.requests:
			fd, err := unix.Socket(r.family, r.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			r.reply <- minted{fd, err}
		case <-m.quit:
			return
		}
	}
}

func (m *minter) close() {
	close(m.quit)
	<-m.gone
}

func (m *minter) socket(addr netip.Addr, kind int) (int, error) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	r := mintRequest{family, kind, make(chan minted, 1)}
	select {
	case m.requests <- r:
		got := <-r.reply
		return got.fd, os.NewSyscallError("socket", got.err)
	case <-m.gone:
		return -1, net.ErrClosed
	}
}

// dial connects to an address of the namespace, over "tcp" or "udp".
func (m *minter) dial(ctx context.Context, proto string, to netip.AddrPort) (net.Conn, error) {
	kind := unix.SOCK_STREAM
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := m.socket(to.Addr(), kind)
	if err != nil {
		return nil, err
	}
	return connectSocket(ctx, fd, to)
}

// connectSocket takes over a socket that does not block.
func connectSocket(ctx context.Context, fd int, to netip.AddrPort) (net.Conn, error) {
	err := rawsock.Connect(fd, to)
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close() // net.FileConn has its own
	if err == unix.EINPROGRESS {
		err = connected(ctx, f)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}

// connected waits until the connection of f is there or has failed.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cause error
	// The first call comes before anything was waited for, and what the poller heard before that is lost: so each looks.
	err = rc.Write(func(fd uintptr) bool {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			err = unix.Errno(n)
		}
		if err == nil {
			if _, perr := unix.Getpeername(int(fd)); perr == unix.ENOTCONN {
				return false // under way
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
