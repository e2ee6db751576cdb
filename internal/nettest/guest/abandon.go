package guest

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// AbandonConnects begins Count connects, one after the other, and closes each socket After that time, whether it is connected
// or not. The result is how many were begun.
type AbandonConnects struct {
	To    netip.AddrPort
	From  netip.AddrPort // the local address of each; the zero value leaves it to the kernel
	Count int
	After time.Duration
	Pause time.Duration // between two of them
	Abort bool          // close with a reset (SO_LINGER)
	TTL   int           // 0 for the kernel's own
}

func (op AbandonConnects) run() (begun int, err error) {
	for ; begun < op.Count; begun++ {
		if err := op.one(); err != nil {
			return begun, err
		}
		time.Sleep(op.Pause)
	}
	return begun, nil
}

func (op AbandonConnects) one() error {
	family := unix.AF_INET
	if op.To.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if op.Abort {
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	if op.TTL != 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, op.TTL); err != nil {
			return err
		}
	}
	if op.From.IsValid() {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(op.From)); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, sockaddr(op.To)); err != nil && err != unix.EINPROGRESS {
		return err
	}
	if op.After > 0 {
		time.Sleep(op.After)
	}
	return nil
}

// ReconnectAfterReset connects Count times from one port, and resets each connection as soon as it stands or, with Exchange,
// after the greeting of an Echo server.
// The result is how many connects succeeded, and the first other outcome.
type ReconnectAfterReset struct {
	To       netip.AddrPort
	From     netip.AddrPort
	Count    int
	Exchange bool
}

func (op ReconnectAfterReset) run() (h Held, err error) {
	for range op.Count {
		err := op.one()
		if err == nil {
			h.Count++
		} else if h.Outcome == OK {
			h.Outcome = OutcomeOf(err)
		}
	}
	return h, nil
}

func (op ReconnectAfterReset) one() error {
	family := unix.AF_INET
	if op.To.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(patience))
	err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait),
		unix.Bind(fd, sockaddr(op.From)))
	if err != nil {
		return err
	}
	err = unix.Connect(fd, sockaddr(op.To))
	for err == unix.EINTR || err == unix.EALREADY || err == unix.EINPROGRESS { // a signal of the runtime's; the connect goes on
		time.Sleep(100 * time.Microsecond)
		if err = unix.Connect(fd, sockaddr(op.To)); err == unix.EISCONN {
			err = nil
		}
	}
	if err != nil || !op.Exchange {
		return err
	}
	err = unix.EINTR
	for err == unix.EINTR {
		_, err = unix.Read(fd, make([]byte, 64)) // the greeting
	}
	return err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
