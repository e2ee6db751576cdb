package userns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Diversion asks for the kernel's road inside: TCP that would leave by the uplink goes to sockets of our own instead.
// Connection requests still leave by the link, where the supervisor judges and dials them; it sends each on to the
// listener when there is somebody at the other end, or answers it on the link and has the connection there.
type Diversion struct {
	// Uplink is the interface's name.
	Uplink string `json:"uplink"`
	// IPv6 is whether there is any.
	IPv6 bool `json:"ipv6,omitempty"`
}

// What the diversion owns in a namespace. The numbers are unlikely enough to be ours alone: a mark that the command sets
// for reasons of its own is lost only if it is one of these.
const (
	// markDivert leads to lo, and there to the listener.
	markDivert = 0x726e0001
	// markSpeak leads to lo. Sockets that speak for somebody outside carry it, and the command's answers to them inherit
	// it (net.ipv4.tcp_fwmark_accept).
	markSpeak = 0x726e0003
	// divertMask is where the two are alike.
	divertMask = ^uint32(markDivert ^ markSpeak)
	// divertTable is a routing table in which every address is local.
	divertTable = 0x726e
	// divertPref puts the rule for the mark right after that of the local addresses.
	divertPref = 1
	// divertName is that of the nftables table.
	divertName = "rootlessnet"

	divertBacklog = 4096
	// divertPort is where the listeners are, on an address that nothing can be connected to by itself: nobody listens on
	// tcpmux (RFC 1078), and only a socket on all addresses would collide.
	divertPort = 1
)

// The listeners' addresses: the IPv4 dummy address (RFC 7600) and one of the discard prefix (RFC 6666).
var (
	divertAddr4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})
	divertAddr6 = netip.AddrFrom16([16]byte{0: 0x01, 15: 1})
)

// diversion is what set-up made. Descriptors for the supervisor are in out: that which owns the rules, the socket for
// packets, the minter's, the IPv4 listener and, with IPv6, the other.
type diversion struct {
	out []*os.File
	// hold are copies of the listeners. Whoever has those addresses has the namespace's only diversion: a second helper in
	// it must not begin, nor find what is there for its own, before the first has taken back its part. Descriptors, and not
	// files: Go's poller would wake init for each connection.
	hold []int
	// undo takes back what does not go with a descriptor.
	undo undo

	uplink uint32 // its index
	ipv6   bool
	keep   bool
	// forwarding owns the rules for what is forwarded; nil until they are wanted.
	forwarding *os.File
}

// divert sets the road up, whole or not at all. With keep, the namespace is ours and ends with us.
func divert(d *Diversion, keep bool) (v *diversion, err error) {
	op := func(what string, err error) error {
		return &Error{Op: "divert TCP: " + what, Err: err, Hint: doctorHint}
	}
	link, err := netlink.LinkByName(d.Uplink)
	if err != nil {
		return nil, op("find "+d.Uplink, err)
	}
	v = &diversion{uplink: uint32(link.Attrs().Index), ipv6: d.IPv6, keep: keep}
	made := v // an error returns nil in its place
	defer func() {
		if err != nil {
			made.close()
		}
	}()
	addrs := []netip.Addr{divertAddr4}
	if d.IPv6 {
		addrs = append(addrs, divertAddr6)
	}
	var listeners []*os.File
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	for _, a := range addrs {
		l, err := divertListener(netip.AddrPortFrom(a, divertPort))
		if err != nil {
			return nil, op(fmt.Sprintf("listen on %v", a), err) // EADDRINUSE: another helper does this here
		}
		listeners = append(listeners, l)
		held, err := dupAbove(l)
		if err != nil {
			return nil, op("keep a listener", err)
		}
		v.hold = append(v.hold, held)
	}
	if err := changeSysctls(divertSysctls(d.IPv6), &v.undo); err != nil {
		return nil, &Error{Op: "divert TCP", Err: err, Hint: doctorHint}
	}
	// A namespace that somebody else made may not have it up yet. It stays up: by then others rely on it too.
	if err := setLoopbackUp(); err != nil {
		return nil, op("set lo up", err)
	}
	if err := divertRoutes(families(d.IPv6), link.Attrs().Index, &v.undo); err != nil {
		return nil, op("routing rule", err)
	}
	packets, err := packetSocket()
	if err != nil {
		return nil, op("packet socket", err)
	}
	v.out = append(v.out, packets)
	mint, err := startMinter()
	if err != nil {
		return nil, op("socket pair", err)
	}
	v.out = append(v.out, mint)
	v.out = append(v.out, listeners...)
	// Last: from here on the command's connections depend on the rest.
	rules, err := divertRules(d, v.uplink, keep)
	if err != nil {
		return nil, op("nftables", err)
	}
	v.out = append([]*os.File{rules}, v.out...)
	return v, nil
}

// undo puts a namespace back as it was: the last change first.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

func (u *undo) run() {
	for _, f := range slices.Backward(*u) {
		f()
	}
	*u = nil
}

type sysctl struct {
	name, value string
	optional    bool
}

// changeSysctls sets those of the calling thread's namespace.
func changeSysctls(list []sysctl, u *undo) error {
	for _, c := range list {
		old, err := os.ReadFile("/proc/sys/" + c.name)
		if err == nil {
			err = writeSysctl(c.name, c.value)
		}
		if err != nil && !c.optional {
			return fmt.Errorf("set %s: %w", c.name, err)
		}
		if err == nil {
			u.add(func() { _ = writeSysctl(c.name, strings.TrimSpace(string(old))) })
		}
	}
	return nil
}

func setLoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// divertSysctls: the request comes back on lo from an address that is the namespace's own (accept_local). The marks of what
// came by the link are for connections (fwmark_accept) and for resets (fwmark_reflect).
func divertSysctls(ipv6 bool) []sysctl {
	list := []sysctl{
		{name: "net/ipv4/conf/lo/accept_local", value: "1"},
		{name: "net/ipv4/tcp_fwmark_accept", value: "1"},
		{name: "net/ipv4/fwmark_reflect", value: "1"},
		{name: sysctlCongestion, value: insideCongestion, optional: true},
	}
	if ipv6 {
		list = append(list, sysctl{name: "net/ipv6/fwmark_reflect", value: "1"})
	}
	return list
}

func (v *diversion) close() {
	closeAll(v.out) // for the second time, where they were sent: no harm in an os.File
	if v.forwarding != nil {
		v.forwarding.Close()
	}
	v.undo.run()
	closeFDs(v.hold)
	v.hold = nil // somebody else has these numbers next
}

// forward adds the rules for what the namespace forwards, once. They live as long as this process.
func (v *diversion) forward() (err error) {
	if v.forwarding != nil {
		return nil
	}
	var routes undo
	if err := forwardRoutes(v.ipv6, &routes); err != nil {
		routes.run()
		return &Error{Op: "divert forwarded TCP: routing rule", Err: err, Hint: doctorHint}
	}
	if v.forwarding, err = forwardRules(v.uplink, v.ipv6, v.keep); err != nil {
		v.forwarding = nil
		routes.run()
		return &Error{Op: "divert forwarded TCP: nftables", Err: err, Hint: doctorHint}
	}
	v.undo.add(routes.run)
	return nil
}

func families(ipv6 bool) []int {
	if ipv6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

// divertRoutes leads what has the mark to lo. A local address is reached by lo whatever interface its route names; the
// second route, which names the uplink, is that of sockets bound to it (SO_BINDTODEVICE): no other would be theirs. Without
// an uplink (0) there is none. What was made before an error is in u.
func divertRoutes(families []int, uplink int, u *undo) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, f := range families {
		any := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if f == netlink.FAMILY_V6 {
			any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		for metric, index := range []int{lo.Attrs().Index, uplink} {
			if index == 0 {
				continue
			}
			route := &netlink.Route{Family: f, Dst: any, LinkIndex: index, Table: divertTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Priority: metric + 1}
			// EEXIST: left by one that was killed. ENETDOWN: the uplink's maker has not set it up yet; then bound sockets have
			// no connections.
			if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) && !(metric > 0 && errors.Is(err, unix.ENETDOWN)) {
				return err
			}
			u.add(func() { _ = netlink.RouteDel(route) })
		}
		rule := netlink.NewRule()
		mask := divertMask
		rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = f, markDivert, &mask, divertTable, divertPref
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		u.add(func() { _ = netlink.RuleDel(rule) })
	}
	return nil
}

// packetSocket sends to lo, and receives nothing.
func packetSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, markDivert); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

// divertListener listens on an address that is not there. Connections inherit its options.
func divertListener(a netip.AddrPort) (f *os.File, err error) {
	fd, err := transparentSocket(a.Addr().Is6(), markSpeak)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if a.Addr().Is4() {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	} else {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
	}
	if err == nil {
		err = unix.Listen(fd, divertBacklog)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// transparentSocket makes a TCP socket that may have anybody's address, ready to be joined with one of the host: no Nagle
// (the command's own kernel has its own), keep-alive at the system's pace, urgent data in line.
func transparentSocket(ipv6 bool, mark int) (fd int, err error) {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if ipv6 {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP); err != nil {
		return -1, err
	}
	options := []struct{ level, name, value int }{
		{level, option, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_MARK, mark},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
	}
	if ipv6 {
		options = append(options, struct{ level, name, value int }{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}
