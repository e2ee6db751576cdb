package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// inherited are the sockets that the caller of New has bound, such as those of a service manager, by what they are bound to. It is not
// changed after it was made.
type inherited map[inheritedKey]*os.File

type inheritedKey struct {
	proto string
	addr  netip.AddrPort
}

// errNotAPort says that a descriptor is no TCP or UDP socket of an IP address. Service managers pass others too, such as unix sockets.
var errNotAPort = errors.New("neither a TCP nor a UDP socket")

// inheritedSockets returns the sockets among files that a port can be published on. A socket on [::] without IPV6_V6ONLY is there for
// 0.0.0.0 as well, unless another one is bound to that: ListenStream=80 in a unit of systemd makes such a socket. skipped are the
// files that are no such sockets.
func inheritedSockets(files []*os.File) (in inherited, skipped []*os.File, err error) {
	in = inherited{}
	both := inherited{}
	for _, f := range files {
		proto, addr, v6only, err := boundTo(f)
		switch {
		case errors.Is(err, errNotAPort):
			skipped = append(skipped, f)
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("inherited socket %s: %w", f.Name(), err)
		}
		in[inheritedKey{proto, addr}] = f
		if addr.Addr() == netip.IPv6Unspecified() && !v6only {
			both[inheritedKey{proto, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())}] = f
		}
	}
	for k, f := range both {
		if in[k] == nil {
			in[k] = f
		}
	}
	return in, skipped, nil
}

// boundTo returns the protocol and address of f: a listening TCP socket or a bound UDP socket that another program made. v6only says
// that it serves no client of IPv4.
func boundTo(f *os.File) (proto string, addr netip.AddrPort, v6only bool, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return "", addr, false, err
	}
	var serr error
	err = rc.Control(func(fd uintptr) { proto, addr, v6only, serr = socketName(int(fd)) })
	return proto, addr, v6only, errors.Join(err, serr)
}

func socketName(fd int) (proto string, addr netip.AddrPort, v6only bool, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	switch {
	case err == unix.ENOTSOCK:
		return "", addr, false, errNotAPort
	case err != nil:
		return "", addr, false, os.NewSyscallError("getsockopt", err)
	case kind == unix.IPPROTO_TCP, kind == unix.IPPROTO_MPTCP:
		proto = "tcp"
	case kind == unix.IPPROTO_UDP:
		proto = "udp"
	default:
		return "", addr, false, errNotAPort
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", addr, false, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		addr = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err != nil {
			return "", addr, false, os.NewSyscallError("getsockopt", err)
		}
		addr, v6only = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), only != 0
	default:
		return "", addr, false, errNotAPort
	}
	return proto, addr, v6only, nil
}
