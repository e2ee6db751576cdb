package udp

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Datagrams to multicast groups leave by the host's interface towards the group, with the TTL that the guest has set: the
// guest is as good as a machine on that link, and programs look for their neighbours with TTL 1. The host's own members of
// the group get no copy. Nothing joins a group for the guest, so what others send to groups does not reach it; the answers
// to it are unicast, and come from addresses that it has not sent to.

// probe6 is an address of which only the route counts, that to the Internet.
var probe6 = netip.MustParseAddr("2000::")

// groupInterface returns the index of the interface by which the host sends to group, from local where that is valid; 0: there
// is none, or the datagrams would reach the host itself only.
func groupInterface(group, local netip.Addr) uint32 {
	// Every IPv6 interface has a route to all groups, so that of the default route is chosen.
	to := []netip.Addr{group}
	if group.Is6() {
		to = []netip.Addr{probe6, group}
	}
	var o netlink.RouteGetOptions
	if local.IsValid() {
		o.SrcAddr = local.AsSlice()
	}
	for _, a := range to {
		routes, err := netlink.RouteGetWithOptions(a.AsSlice(), &o)
		if err != nil || len(routes) == 0 || routes[0].LinkIndex == 0 {
			continue
		}
		if index := uint32(routes[0].LinkIndex); !isLoopback(index) {
			return index
		}
	}
	return 0
}

// isLoopback says whether an interface is a loopback; one that does not exist counts as such.
func isLoopback(index uint32) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	var r unix.Ifreq
	r.SetUint32(index)
	if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, &r) != nil || unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, &r) != nil {
		return true
	}
	return r.Uint16()&unix.IFF_LOOPBACK != 0
}

// prepareGroups sets the options that sending to groups needs, once. mu is held.
func (s *socket) prepareGroups() error {
	if s.groupsReady {
		return nil
	}
	var err error
	if s.v6 {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0) // since Linux 4.20
	} else {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
	}
	s.groupsReady = err == nil
	return err
}
