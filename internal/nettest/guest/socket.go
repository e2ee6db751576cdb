package guest

import (
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket holds options of a TCP socket. The zero value sets none.
type Socket struct {
	Mark      uint32         `json:",omitempty"` // SO_MARK
	TTL       int            `json:",omitempty"` // IP_TTL or IPV6_UNICAST_HOPS
	Device    string         `json:",omitempty"` // SO_BINDTODEVICE
	From      netip.AddrPort // the local address, which may be in TIME_WAIT; the zero value leaves it to the kernel
	FastOpen  bool           `json:",omitempty"` // the first data travels in the SYN, without a cookie (RFC 7413)
	Multipath bool           `json:",omitempty"` // MPTCP (RFC 8684)
	Receive   int            `json:",omitempty"` // SO_RCVBUF
	Timeout   time.Duration  `json:",omitempty"` // of the connect and of the exchange; 0 for a few seconds
}

func (s Socket) timeout() time.Duration {
	if s.Timeout > 0 {
		return s.Timeout
	}
	return patience
}

func (s Socket) dialer() net.Dialer {
	d := net.Dialer{Timeout: s.timeout(), Control: s.control}
	d.SetMultipathTCP(s.Multipath)
	if s.From.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(s.From)
	}
	return d
}

func (s Socket) dial(to Target) (net.Conn, error) {
	d := s.dialer()
	return d.Dial("tcp", to.String())
}

func (s Socket) listenConfig() net.ListenConfig {
	lc := net.ListenConfig{Control: s.control}
	lc.SetMultipathTCP(s.Multipath)
	return lc
}

// control sets the options on a new socket.
func (s Socket) control(_, _ string, c syscall.RawConn) (err error) {
	set := func(wanted bool, f func() error) {
		if wanted && err == nil {
			err = f()
		}
	}
	cerr := c.Control(func(raw uintptr) {
		fd := int(raw)
		set(s.Mark != 0, func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(s.Mark)) })
		set(s.TTL != 0, func() error {
			if unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, s.TTL) == nil {
				return nil
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, s.TTL)
		})
		set(s.Receive != 0, func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, s.Receive) })
		set(s.Device != "", func() error { return unix.BindToDevice(fd, s.Device) })
		set(s.From.IsValid(), func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		set(s.FastOpen, func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1) })
		set(s.FastOpen, func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1) })
	})
	if err == nil {
		err = cerr
	}
	return err
}
