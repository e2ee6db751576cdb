package forwarder

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/procnet"
	"rootlessnet/internal/rawsock"
)

const (
	// DialTimeout is longer than Linux's own (tcp_syn_retries 6: 127 s), so that the kernel's answer comes first.
	DialTimeout = 130 * time.Second
	// GuestTimeout bounds handshakes with the guest, in both directions. The guest is one link away: longer waiting would not help.
	GuestTimeout = 20 * time.Second

	// Without free file descriptors a dial is tried again after DialRetryPause, MaxDialRetries times; then the guest's own
	// retransmission must start a new one. The pause is long enough that the tries use no measurable processor time, and short
	// enough that service resumes within a second of a descriptor becoming free.
	DialRetryPause = 200 * time.Millisecond
	MaxDialRetries = 50
)

// DialError is a failed connection attempt: the errno, and the ICMP error that caused it, if one was received.
type DialError struct {
	Errno  syscall.Errno
	Queued *QueuedError
}

func (e *DialError) Error() string { return "dial: " + e.Errno.Error() }
func (e *DialError) Unwrap() error { return e.Errno }

// StartDial makes a non-blocking TCP socket and starts to connect it to dst: done, or rawsock.ConnectState says how that
// goes. tos is the traffic class of the guest's packets. The error is a *DialError; there is no socket then.
func StartDial(from Egress, dst netip.AddrPort, tos uint8) (fd int, done bool, err error) {
	v4 := dst.Addr().Is4()
	if fd, err = rawsock.Socket(v4); err != nil {
		return -1, false, &DialError{Errno: err.(syscall.Errno)}
	}
	if tos &^= 3; tos != 0 { // the two ECN bits of a TCP packet are its own kernel's
		if v4 {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(tos))
		} else {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(tos))
		}
	}
	if err = bindSource(fd, from); err == nil {
		done, err = rawsock.ConnectFrom(fd, netip.AddrPort{}, dst)
	}
	switch {
	case err != nil:
		err = ConnectFailure(fd, err, dst)
		unix.Close(fd)
		return -1, false, err
	case !done:
		QueueErrors(fd, v4, 1)
	}
	return fd, done, nil
}

// ConnectFailure is the error of a failed connect, with the ICMP error in the error queue of its socket, if there is one.
func ConnectFailure(fd int, err error, dst netip.AddrPort) *DialError {
	errno, ok := err.(syscall.Errno)
	if !ok {
		errno = syscall.EIO
	}
	return &DialError{Errno: errno, Queued: connectError(fd, dst.Addr().Is4())}
}

// bindSource binds fd to an interface, and to an address without a port, which connect chooses and then may use again
// for another destination (ip(7), IP_BIND_ADDRESS_NO_PORT).
func bindSource(fd int, by Egress) error {
	if by.Index != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, by.Index); err != nil {
			return err
		}
	}
	if !by.Addr.IsValid() {
		return nil
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	return rawsock.Bind(fd, netip.AddrPortFrom(by.Addr, 0))
}

// ConnectedToItself reports whether a socket that StartDial connected to dst is connected to itself, see rawsock.IsSelf. Only
// a port in the range from which the kernel gives ports to clients can be the socket's own.
func ConnectedToItself(fd int, dst netip.AddrPort) bool {
	r, known := procnet.LocalPorts()
	return (!known || r.Contains(dst.Port())) && rawsock.IsSelf(fd, dst)
}

// TuneHost sets what a joined socket of the host needs: Nagle's algorithm off (the guest's kernel has applied its own),
// keep-alive with the system's times so that the guest's connection ends when its peer has vanished, urgent data in line.
// Sockets that a listener accepts inherit these options.
func TuneHost(fd int) {
	rawsock.NoDelay(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}
