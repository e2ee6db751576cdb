package udp

import (
	"net/netip"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

// The MTU of the guest's link is much larger than that of most links of the host, and a Linux guest
// marks every datagram DF that fits its own link (ip(7) IP_PMTUDISC_WANT). So DF on a datagram larger than the host's
// link does not mean that the program asked for it: on the host the kernel would have fragmented it, and it does so here. DF
// on one that fits the link is kept, so that the guest learns the path's MTU from routers and from the host.

const (
	// linkLife is for how long the MTU of the host's link is remembered in a flow: routes change.
	linkLife = 5 * time.Second

	udp4Headers = 20 + 8 // IPv4 without options and UDP
	udp6Headers = 40 + 8
)

// aboveLink reports whether a datagram of size bytes of payload is known to be larger than the MTU of the host's link.
func (t *target) aboveLink(size int) bool {
	size += udp4Headers
	if t.peer.Addr().Is6() {
		size += udp6Headers - udp4Headers
	}
	return t.link > 0 && size > t.link
}

// findLink sets t.link if the MTU of the link can be read.
func (t *target) findLink() {
	index := int(t.scope)
	if index == 0 {
		var o netlink.RouteGetOptions
		if t.local.IsValid() {
			o.SrcAddr = t.local.AsSlice()
		}
		routes, err := netlink.RouteGetWithOptions(t.peer.Addr().AsSlice(), &o)
		if err != nil || len(routes) == 0 {
			return
		}
		index = routes[0].LinkIndex
	}
	t.link = interfaceMTU(index)
}

// interfaceMTU returns 0 when there is no such interface. It does not wait for the kernel's RTNL lock, as a netlink
// request about the interface would (netdevice(7)).
func interfaceMTU(index int) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var r unix.Ifreq
	r.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, &r); err != nil {
		return 0
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, &r); err != nil { // by the name that is in r now
		return 0
	}
	return int(r.Uint32())
}

// rememberLink stores in the flow what sending has detected about the host's link.
func (x *Path) rememberLink(key flowKey, t *target) {
	now := x.now()
	x.mu.Lock()
	defer x.unlock()
	if f := x.find(key); f != nil && f.peer == t.peer {
		f.link, f.single, f.linkAt = t.link, t.single, now
	}
}

// pathMTU returns the path MTU to dst that the host's kernel has recorded, 0 if it cannot be read. No packet is sent.
func pathMTU(dst netip.AddrPort) uint32 {
	family, level, opt := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU
	if dst.Addr().Is6() {
		family, level, opt = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var raw rawsock.Addr
	n := raw.Set(netip.AddrPortFrom(dst.Addr(), max(1, dst.Port())), dst.Addr().Is6(), 0)
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(n)); errno != 0 {
		return 0
	}
	mtu, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		return 0
	}
	return uint32(mtu)
}
