package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routes reads the routing tables and addresses from the kernel by rtnetlink(7), in the network namespace of the calling
// thread. It implements plan.Host. Its methods may be called concurrently.
type Routes struct{}

// Prefixes returns the destinations of all routes, the default routes (0.0.0.0/0, ::/0) among them, and the networks of the
// addresses of all interfaces. IPv4-mapped prefixes are returned as IPv4.
func (Routes) Prefixes() ([]netip.Prefix, error) {
	var found []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		if ones, bits := n.Mask.Size(); ok && bits > 0 {
			addr = addr.Unmap()
			if bits == 128 && addr.Is4() {
				ones -= 96
			}
			if p, err := addr.Prefix(ones); err == nil {
				found = append(found, p)
			}
		}
	}
	// Every table: VPNs keep their routes in tables of their own.
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		add(r.Dst)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	return found, nil
}
