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
	ifName string
	addrs  []netip.Prefix // of global scope; those that the host does not choose as a source any more come last
	// kept are addresses that the namespace has from before and another interface of the host has still. Connections by them go on.
	kept       []netip.Prefix
	deprecated []netip.Addr // the addresses among addrs without a preferred lifetime, and those of kept
	gateway    netip.Addr   // of the default route; the zero value if that has no gateway or does not exist
	routes     []rootlessnet.Route
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
	var old []netip.Prefix
	for _, a := range addrs {
		p := prefixOf(a.IPNet)
		switch {
		case !p.IsValid() || a.Scope != int(netlink.SCOPE_UNIVERSE) || a.Flags&unix.IFA_F_TENTATIVE != 0:
		case a.Flags&unix.IFA_F_DEPRECATED != 0:
			old = append(old, p)
		default:
			t.addrs = append(t.addrs, p)
		}
	}
	t.addrs = append(t.addrs, old...)
	t.deprecate(old)
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

// deprecate notes that new connections are not to be made from these addresses.
func (t *template) deprecate(list []netip.Prefix) {
	for _, p := range list {
		t.deprecated = append(t.deprecated, p.Addr())
	}
}

// keep sets t.kept to those of list, the namespace's addresses, that the host has, but not on the interface of the template.
func (t *template) keep(list []netip.Prefix, v6 bool, hostHas map[netip.Addr]bool) {
	t.deprecated = slices.DeleteFunc(slices.Clone(t.deprecated), func(a netip.Addr) bool {
		return slices.ContainsFunc(t.kept, func(p netip.Prefix) bool { return p.Addr() == a })
	})
	t.kept = nil
	for _, p := range list {
		if p.Addr().Is6() == v6 && hostHas[p.Addr()] && !hasAddress(t.addrs, p.Addr()) {
			t.kept = append(t.kept, p)
		}
	}
	t.deprecate(t.kept)
}

func hasAddress(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr() == a })
}

// hostAddresses are the addresses of all interfaces of the host.
func hostAddresses() (map[netip.Addr]bool, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	all := map[netip.Addr]bool{}
	for _, a := range list {
		all[prefixOf(a.IPNet).Addr()] = true
	}
	return all, nil
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
