package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/procnet"
)

// template holds the addresses and routes of one family that the namespace copies from an interface of the host. The zero value
// means that the host has no such interface.
type template struct {
	ifName  string
	addrs   []netip.Prefix // of global scope
	gateway netip.Addr     // of the default route; the zero value if that has no gateway or does not exist
	routes  []rootlessnet.Route
}

// hostTemplate reads the template of one family from the kernel. ifName names the interface; "" means the interface of the
// default route with the lowest metric.
func hostTemplate(v6 bool, ifName string) (template, error) {
	family, bits := netlink.FAMILY_V4, 32
	if v6 {
		family, bits = netlink.FAMILY_V6, 128
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return template{}, fmt.Errorf("list the host's routes: %w", err)
	}
	for i := range routes {
		oneHop(&routes[i])
	}
	index := 0
	if ifName != "" {
		link, err := netlink.LinkByName(ifName)
		if err != nil {
			return template{}, fmt.Errorf("Invalid interface name %s: %w", ifName, err)
		}
		index = link.Attrs().Index
	}
	var best *netlink.Route
	for i, r := range routes {
		if isDefault(r.Dst) && r.LinkIndex != 0 && (index == 0 || r.LinkIndex == index) && (best == nil || r.Priority < best.Priority) {
			best = &routes[i]
		}
	}
	if index == 0 {
		if best == nil {
			return template{}, nil
		}
		index = best.LinkIndex
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return template{}, fmt.Errorf("the host's interface %d: %w", index, err)
	}
	t := template{ifName: link.Attrs().Name}
	if best != nil {
		t.gateway = addrOf(best.Gw)
	}
	addrs, err := netlink.AddrList(link, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return template{}, fmt.Errorf("list the addresses of %s: %w", t.ifName, err)
	}
	if v6 {
		preferTemporary(addrs, t.ifName)
	}
	for _, a := range addrs {
		if a.Scope == int(netlink.SCOPE_UNIVERSE) && a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE) == 0 {
			if p := prefixOf(a.IPNet); p.IsValid() {
				t.addrs = append(t.addrs, p)
			}
		}
	}
	for _, r := range routes {
		// The kernel adds the route of an address by itself, for the copied address as well.
		if r.LinkIndex != index || r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		dst := netip.PrefixFrom(unspecified(v6), 0)
		if !isDefault(r.Dst) {
			if dst = prefixOf(r.Dst); !dst.IsValid() || dst.Addr().BitLen() != bits {
				continue
			}
		}
		t.routes = append(t.routes, rootlessnet.Route{Dst: dst, Gateway: addrOf(r.Gw), Source: addrOf(r.Src), Metric: r.Priority})
	}
	// Routes without a gateway are added first, because the gateways of the others may be reachable through them only.
	slices.SortStableFunc(t.routes, func(a, b rootlessnet.Route) int {
		switch {
		case a.Gateway.IsValid() == b.Gateway.IsValid():
			return b.Dst.Bits() - a.Dst.Bits()
		case a.Gateway.IsValid():
			return 1
		}
		return -1
	})
	return t, nil
}

// oneHop reduces a multipath route to its first next hop. The namespace has one gateway only, and the host distributes the guest's
// connections over its own next hops.
func oneHop(r *netlink.Route) {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		r.LinkIndex, r.Gw = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw
	}
}

func unspecified(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

// ephemeralPorts returns the first and last port of the range from which the host's kernel chooses ports, or Linux's default range
// if that cannot be read.
func ephemeralPorts() [2]uint16 {
	r, _ := procnet.LocalPorts()
	return [2]uint16{r.First, r.Last}
}
