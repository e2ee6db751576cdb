package udp

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/internal/rawsock"
)

const (
	// A client that appears as the gateway gets another port if its own is in use there: one of the dynamic ports, which
	// are assigned to no service (RFC 6335 6).
	aliasFirst, aliasLast = 49152, 65535
	// aliasTries bounds the search, which runs for a flow's first datagram only.
	aliasTries = 128
)

// UDPListen describes a published port: the host address, and the port of the guest that it is forwarded to.
type UDPListen struct {
	// Endpoint is the endpoint of the guest.
	Endpoint flow.Endpoint
	// Addr is bound; port 0 lets the kernel choose. [::] is bound for IPv6 only. Ignored with File.
	Addr netip.AddrPort
	// File is a bound UDP socket that the caller has made; it is duplicated, and remains the caller's. It may be one
	// for both families. nil: Addr is bound.
	File *os.File
	// Guest4 and Guest6 are where clients are forwarded to, at least one of them. A client is forwarded to the one of its own
	// family and appears there under its own address; where that is missing, or for as long as nothing listens there, it is
	// forwarded to the other one and appears as the gateway. So does a client that cannot be shown as itself (package
	// clientaddr).
	Guest4, Guest6 netip.AddrPort
	// Guests are all addresses of the guest, if it may have addresses of the host: a client that asked one of them is forwarded
	// to it. Nil: every client is forwarded to Guest4 or Guest6.
	Guests []netip.Addr
}

// UDPPort is one published UDP port.
type UDPPort struct {
	x    *Path
	s    *socket
	cfg  UDPListen
	addr netip.AddrPort
	next uint16 // the next port to try for an alias; guarded by table.mu

	// guests are cfg.Guests where a family has more than one, else nil; guarded by table.mu.
	guests []netip.Addr
	// refused is when the guest refused what was forwarded to its IPv4 and IPv6 address in the place of the client's own
	// family; guarded by table.mu.
	refused [2]moment
}

// Addr returns the host address with the port that was bound.
func (p *UDPPort) Addr() netip.AddrPort { return p.addr }

// Close closes the port and ends its flows. It may be called more than once.
func (p *UDPPort) Close() error {
	p.x.mu.Lock()
	p.x.removeSocket(p.s)
	p.x.unlock()
	return nil
}

// SetGuests forwards the port to other addresses of the guest, of the families that the port has; all are all of them. The
// flows to an address that is gone end.
func (p *UDPPort) SetGuests(guest4, guest6 netip.Addr, all []netip.Addr) {
	p.x.mu.Lock()
	defer p.x.unlock()
	for _, g := range []struct {
		at  *netip.AddrPort
		now netip.Addr
	}{{&p.cfg.Guest4, guest4}, {&p.cfg.Guest6, guest6}} {
		if g.at.IsValid() && g.now.IsValid() {
			*g.at = netip.AddrPortFrom(g.now, g.at.Port())
		}
	}
	p.setGuests(all)
	serves := func(a netip.AddrPort) bool {
		return a == p.cfg.Guest4 || a == p.cfg.Guest6 || a.Port() == p.guestPort() && slices.Contains(p.guests, a.Addr())
	}
	var stale []*conversation
	for e := p.s.flows.Front(); e != nil; e = e.Next() {
		if f := e.Value.(*conversation); !serves(f.key.guest) || f.client.other.IsValid() && !serves(f.client.other) {
			stale = append(stale, f)
		}
	}
	for _, f := range stale {
		p.x.removeFlow(f)
	}
	for e := p.s.flows.Front(); e != nil; e = e.Next() {
		f := e.Value.(*conversation)
		delete(p.x.peers, f.peerKey())
		if f.client.at = (netip.Addr{}); p.guests != nil {
			f.client.at = f.key.guest.Addr()
		}
		p.x.peers[f.peerKey()] = f
	}
}

// setGuests sets p.guests. mu is held, or p is not in use yet.
func (p *UDPPort) setGuests(all []netip.Addr) {
	p.guests = nil
	var n [2]int
	for _, a := range all {
		if n[family(a)]++; n[family(a)] > 1 {
			p.guests = all
		}
	}
}

// guestPort is the server's port.
func (p *UDPPort) guestPort() uint16 {
	if p.cfg.Guest4.IsValid() {
		return p.cfg.Guest4.Port()
	}
	return p.cfg.Guest6.Port()
}

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// ListenUDP publishes a port. The error is an *Error that wraps the errno of bind (EADDRINUSE, EACCES for a privileged
// port, EADDRNOTAVAIL).
func (x *Path) ListenUDP(l UDPListen) (*UDPPort, error) {
	p, err := x.listenUDP(l)
	if err != nil {
		return nil, &Error{Op: "listen udp", Addr: l.Addr, Err: err}
	}
	return p, nil
}

func (x *Path) listenUDP(l UDPListen) (*UDPPort, error) {
	if l.Guest4.IsValid() && !l.Guest4.Addr().Is4() || l.Guest6.IsValid() && !l.Guest6.Addr().Is6() ||
		!l.Guest4.IsValid() && !l.Guest6.IsValid() {
		return nil, unix.EINVAL
	}
	s := newSocket()
	var err error
	if l.File != nil {
		err = s.adopt(l.File)
	} else {
		err = s.bind(l.Addr)
	}
	if err != nil {
		return nil, err
	}
	var raw rawsock.Addr
	size := uint32(unix.SizeofSockaddrInet6)
	if _, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(s.fd), uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		s.close()
		return nil, errno
	}
	p := &UDPPort{x: x, s: s, cfg: l, next: aliasFirst}
	p.addr, _ = raw.Get()
	p.setGuests(l.Guests)
	s.pub = p
	x.mu.Lock()
	defer x.unlock()
	if x.closed {
		x.dead = append(x.dead, s)
		return nil, os.ErrClosed
	}
	if err := x.watch(s); err != nil {
		x.dead = append(x.dead, s)
		return nil, err
	}
	return p, nil
}

// bind makes s a socket on addr.
func (s *socket) bind(addr netip.AddrPort) error {
	if !addr.IsValid() {
		return unix.EINVAL
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	family := unix.AF_INET
	if s.v6 = addr.Addr().Is6(); s.v6 {
		family = unix.AF_INET6
	}
	var err error
	if s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP); err != nil {
		return err
	}
	if s.v6 {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	var scope uint32
	if zone := addr.Addr().Zone(); zone != "" {
		scope = interfaceIndex(zone)
	}
	var raw rawsock.Addr
	n := raw.Set(addr, s.v6, scope)
	// Options first: a datagram may arrive as soon as the socket is bound.
	if err = s.preparePublished(); err == nil {
		if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(s.fd), uintptr(unsafe.Pointer(&raw)), uintptr(n)); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		_ = unix.Close(s.fd)
	}
	return err
}

// adopt makes s a duplicate of the UDP socket f.
func (s *socket) adopt(f *os.File) error {
	rc, err := f.SyscallConn() // unlike Fd, it leaves the file non-blocking
	if err != nil {
		return err
	}
	var dupErr error
	if err := rc.Control(func(fd uintptr) { s.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if dupErr != nil {
		return dupErr
	}
	if err := s.adopted(); err != nil {
		_ = unix.Close(s.fd)
		return err
	}
	return nil
}

func (s *socket) adopted() error {
	proto, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	if proto != unix.IPPROTO_UDP {
		return unix.EPROTOTYPE
	}
	family, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	if s.v6 = family == unix.AF_INET6; s.v6 {
		only, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		s.dual = err == nil && only == 0
	}
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	return s.preparePublished()
}

func (s *socket) preparePublished() error {
	if s.v6 {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
			return err
		}
	}
	if !s.v6 || s.dual {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
			return err
		}
	}
	return s.prepare()
}

func interfaceIndex(zone string) uint32 {
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0 // bind then returns ENODEV or EINVAL
	}
	return uint32(ifi.Index)
}
