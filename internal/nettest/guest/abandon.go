package guest

import (
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

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
