package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet"
)

// template is one family of the host's interface whose network the namespace takes over. Its zero value stands for a
// host that has none.
type template struct {
	ifName  string
	addrs   []netip.Prefix // of global scope
	gateway netip.Addr     // the zero value: a default route without one
	routes  []rootlessnet.Route
}

// hostTemplate reads it. ifName chooses the interface; empty means that of the best default route.
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
	for _, a := range addrs {
		if a.Scope == int(netlink.SCOPE_UNIVERSE) && a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE) == 0 {
			if p := prefixOf(a.IPNet); p.IsValid() {
				t.addrs = append(t.addrs, p)
			}
		}
	}
	for _, r := range routes {
		// What the kernel makes of an address it makes of the copy too.
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
	// Those on the link come first: gateways of the others may be reached by them.
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

// oneHop makes of a route with several next hops one by the first: the guest's packets are spread over them by the host.
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

// ephemeralPorts is the range the kernel takes ports from.
func ephemeralPorts() [2]uint16 {
	r := [2]uint16{32768, 60999} // the kernel's default
	f, err := os.Open("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return r
	}
	defer f.Close()
	if _, err := fmt.Fscan(f, &r[0], &r[1]); err != nil {
		return [2]uint16{32768, 60999}
	}
	return r
}
