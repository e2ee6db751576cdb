package netns

import (
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// receivedTimeout bounds awaitReceived. The worker usually runs within a millisecond, and on an overloaded machine within some
	// hundred; on an interface without a carrier it never does.
	receivedTimeout  = time.Second
	receivedInterval = 200 * time.Microsecond
)

// awaitReceived waits until the namespace receives packets for the IPv6 addresses among addrs, which were just added. The kernel
// adds the local route of an IPv6 address, also of one without duplicate address detection, in a worker some time after the
// request for the address has returned (addrconf_dad_completed, net/ipv6/addrconf.c). Until then it drops what arrives, and an
// answer to the first packet of a command would be lost. IPv4 addresses work at once.
func awaitReceived(nl *netlink.Handle, addrs []netip.Prefix) {
	deadline := time.Now().Add(receivedTimeout)
	for _, p := range addrs {
		for p.Addr().Is6() && !isLocal(nl, p.Addr()) && time.Now().Before(deadline) {
			time.Sleep(receivedInterval)
		}
	}
}

// isLocal reports whether the namespace receives packets for the address.
func isLocal(nl *netlink.Handle, a netip.Addr) bool {
	routes, err := nl.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}
