package tcp

import (
	"context"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/rawsock"
)

// halfClosedIdle is the keep-alive time, in seconds, of a connection one side of which was closed.
const halfClosedIdle = 60

// hostConn is a TCP socket of the host on Go's poller.
type hostConn struct {
	f      *os.File
	rc     syscall.RawConn
	peer   netip.AddrPort
	budget *fdbudget.Budget // that the descriptor was taken from; nil: none
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

// dialHost connects to dst. It does what net.Dialer does, but keeps the socket after a failure to read the ICMP error that
// caused it. The error is a *forwarder.DialError.
func dialHost(ctx context.Context, from forwarder.Egress, dst netip.AddrPort, tos uint8) (*hostConn, error) {
	fd, done, err := forwarder.StartDial(from, dst, tos)
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
		// Go calls this function before it waits, and events before that are lost: it must read the socket's state.
		if done {
			return true
		}
		ok, err := rawsock.ConnectState(int(fd), dst)
		if err != nil {
			failure = forwarder.ConnectFailure(int(fd), err, dst)
		}
		return ok || err != nil
	})
	if stop(); failure == nil && (werr != nil || ctx.Err() != nil) {
		failure = &forwarder.DialError{Errno: syscall.ETIMEDOUT}
	}
	if failure != nil {
		h.f.Close()
		return nil, failure
	}
	if forwarder.ConnectedToItself(fd, dst) {
		h.reset()
		return nil, &forwarder.DialError{Errno: syscall.ECONNREFUSED}
	}
	_ = h.rc.Control(func(fd uintptr) {
		forwarder.TuneHost(int(fd))
		forwarder.QueueErrors(int(fd), dst.Addr().Is4(), 0)
	})
	return h, nil
}

// close closes the socket; with unread data the kernel sends RST, as for any program.
func (h *hostConn) close() {
	if h.f.Close() == nil && h.budget != nil { // an error means that it was closed before
		h.budget.Give(fdbudget.Stack, 1)
	}
}

// reset closes the socket with RST. Sockets in TIME_WAIT would accumulate on the host and slow every connect.
func (h *hostConn) reset() {
	_ = h.rc.Control(func(fd uintptr) { rawsock.ResetOnClose(int(fd)) })
	h.close()
}

// wake makes both directions return from a wait.
func (h *hostConn) wake() { _ = h.f.SetDeadline(time.Unix(1, 0)) }

// wakeReader makes a waiting reader return; settleReader allows waits again.
func (h *hostConn) wakeReader()   { _ = h.f.SetReadDeadline(time.Unix(1, 0)) }
func (h *hostConn) settleReader() { _ = h.f.SetReadDeadline(time.Time{}) }

// shortenKeepAlive is for a half-closed connection: the peer that closed its side may have vanished.
func (h *hostConn) shortenKeepAlive() {
	_ = h.rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, halfClosedIdle)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, halfClosedIdle)
	})
}
