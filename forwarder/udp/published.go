package udp

import (
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

const (
	// A client that appears as the gateway gets another port if its own is in use there: one of the dynamic ports, which
	// are assigned to no service (RFC 6335 6).
	aliasFirst, aliasLast = 49152, 65535
	// aliasTries bounds the search, which runs for a flow's first datagram only.
	aliasTries = 128
	// maxFirst is the largest first datagram kept for moveClient: what fits a packet on an Ethernet. Larger ones are
	// not sent again: the client must retry.
	maxFirst = 1472
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
	// family and appears there under its own address; where that is missing, or nothing listens there, it is forwarded to
	// the address of the other family and appears as the gateway. A client that cannot be shown as itself (package clientaddr)
	// appears as the gateway, too.
	Guest4, Guest6 netip.AddrPort
}

// UDPPort is one published UDP port.
type UDPPort struct {
	x    *Path
	s    *socket
	cfg  UDPListen
	addr netip.AddrPort
	next uint16 // the next port to try for an alias; guarded by table.mu
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

// SetGuests forwards the port to other addresses of the guest, of the families that the port has. The flows to
// a removed address end.
func (p *UDPPort) SetGuests(guest4, guest6 netip.Addr) {
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
	var stale []*conversation
	for e := p.s.flows.Front(); e != nil; e = e.Next() {
		if f := e.Value.(*conversation); f.key.guest != p.cfg.Guest4 && f.key.guest != p.cfg.Guest6 {
			stale = append(stale, f)
		}
	}
	for _, f := range stale {
		p.x.removeFlow(f)
	}
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

// publishedIn sends a client's datagram, or a GSO batch, to the guest.
func (x *Path) publishedIn(s *socket, r *receiver, from netip.AddrPort, scope uint32, data []byte, c control) {
	now := x.now()
	x.mu.Lock()
	f := x.peers[peerKey{s, from}]
	if f == nil {
		if x.byFD[int32(s.fd)] != s { // closed since it was read
			x.unlock()
			x.count.drop(DropClosed)
			return
		}
		f = x.newClient(s.pub, from, scope, now)
		if f == nil {
			x.unlock()
			x.count.drop(DropNoPort)
			return
		}
		if f.alt.IsValid() && len(data) <= maxFirst {
			f.first = append([]byte(nil), data...)
		}
	}
	f.local = c.local
	x.received(f, now, data, r.more, c)
	key := f.key
	x.unlock()
	x.deliver(r, key, false, data, c)
}

// newClient makes the flow of a client's first datagram; nil when no address and port of the gateway are free for the client. mu is held.
func (x *Path) newClient(p *UDPPort, from netip.AddrPort, scope uint32, now time.Duration) *conversation {
	guest, other := p.cfg.Guest4, p.cfg.Guest6
	if from.Addr().Is6() {
		guest, other = other, guest
	}
	if !guest.IsValid() {
		guest, other = other, netip.AddrPort{}
	}
	key, ok := x.clientKey(p, guest, from)
	if !ok {
		return nil
	}
	f := &conversation{key: key, alt: other, target: target{s: p.s, peer: from, scope: scope}}
	x.insert(f, now)
	return f
}

// clientKey chooses the address and port under which the guest sees a client. mu is held.
func (x *Path) clientKey(p *UDPPort, guest, from netip.AddrPort) (flowKey, bool) {
	key := flowKey{p.cfg.Endpoint, protoUDP, guest, from}
	e := x.f.Endpoint(p.cfg.Endpoint)
	if e == nil {
		return key, false
	}
	alias := !e.ClientVisible(from.Addr(), guest.Addr())
	if !alias {
		// An outbound flow to the client is replaced: what the guest sends there now are answers. Only another
		// published port with the same client and server keeps its flow.
		if f := x.flows[key]; f == nil || f.s.pub == nil {
			return key, true
		}
	}
	a := from.Addr()
	if alias {
		if a = e.Addresses().Gateway4; guest.Addr().Is6() {
			a = e.Addresses().Gateway6
		}
		if !a.IsValid() {
			return key, false
		}
	}
	port := from.Port()
	for range aliasTries {
		key.remote = netip.AddrPortFrom(a, port)
		if x.flows[key] == nil && !e.AnswersDNS(key.remote) {
			return key, true
		}
		port = p.next
		if p.next++; p.next < aliasFirst {
			p.next = aliasFirst // it wrapped after aliasLast
		}
	}
	return key, false
}

// moveClient forwards a client to the server's address of the other family, if there is one that was not tried: the guest has
// answered with "port unreachable".
func (x *Path) moveClient(key flowKey) {
	x.mu.Lock()
	f := x.flows[key]
	if f == nil || f.s.pub == nil || !f.alt.IsValid() || f.outPkts > 0 {
		x.unlock()
		return
	}
	p, first, now := f.s.pub, f.first, x.now()
	moved := &conversation{target: f.target, inPkts: f.inPkts, inBytes: f.inBytes}
	var ok bool
	moved.key, ok = x.clientKey(p, f.alt, f.peer)
	if !ok {
		x.unlock()
		return
	}
	x.insert(moved, now) // which removes f: they have the same client
	x.unlock()
	if first == nil {
		return
	}
	if err := x.guest.WriteUDP(&stack.Datagram{Flow: stack.Flow{Endpoint: moved.key.endpoint, Src: moved.key.remote, Dst: moved.key.guest}, Payload: first}); err != nil {
		x.count.drop(DropGuestWrite)
	}
}
