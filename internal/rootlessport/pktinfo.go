package rootlessport

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// requestDestinations has the kernel say to which of the host's addresses each datagram was sent. Without that, answers leave from
// the address that the host's routes choose.
func requestDestinations(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // the socket is closed
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) != nil { // a socket of IPv4
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
}

// destination reads the address of the host from the control messages of a datagram; the zero value if they do not say.
func destination(oob []byte) netip.Addr {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(m.Data[4:8])) // ipi_spec_dst: the host's even if it was sent to a broadcast address
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			if a := netip.AddrFrom16([16]byte(m.Data[:16])); !a.IsLinkLocalUnicast() { // of which an interface has one
				return a
			}
		}
	}
	return netip.Addr{}
}

// fromAddress is the control message by which a datagram leaves from local; nil leaves the choice to the kernel.
func fromAddress(local netip.Addr) []byte {
	switch {
	case local.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
	case local.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16()})
	}
	return nil
}
