package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setLoopbackUp sets up lo of the calling thread's namespace.
func setLoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// configureLink gives the interface l.Name, which exists, its MTU, MAC and IP addresses and routes, and sets it up.
func configureLink(nl *netlink.Handle, l *Link, kind string, warn Warn) error {
	link, err := nl.LinkByName(l.Name)
	if err != nil {
		return &Error{Op: "find " + l.Name, Err: err}
	}
	op := func(what string, err error) error {
		if err == nil {
			return nil
		}
		return &Error{Op: fmt.Sprintf("set the %s of %s", what, l.Name), Err: err}
	}
	if err := op("MTU", nl.LinkSetMTU(link, l.MTU)); err != nil {
		return err
	}
	if len(l.MAC) > 0 && kind != KindPacket { // openPacket made the veth with its address
		if err := op("address", nl.LinkSetHardwareAddr(link, l.MAC)); err != nil {
			return err
		}
	}
	var have6 bool
	for _, p := range l.Addrs {
		have6 = have6 || p.Addr().Is6()
	}
	if have6 {
		// Set before the interface is up. No other host on the link can have these addresses, so that duplicate address
		// detection only costs time, and router advertisements must not add further addresses.
		for _, name := range []string{"accept_ra", "accept_dad"} {
			err := writeSysctl("net/ipv6/conf/"+l.Name+"/"+name, "0")
			if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: no IPv6, or not at this MTU
				warn("sysctl %s of %s: %v", name, l.Name, err)
			}
		}
	}
	if err := op("state", nl.LinkSetUp(link)); err != nil {
		return err
	}
	no6 := false
	for _, p := range l.Addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			if p.Addr().Is6() {
				warn("no IPv6 inside: address %v: %v", p, err)
				no6 = true
				continue
			}
			return op(fmt.Sprintf("address %v", p), err)
		}
	}
	for _, g := range l.Gateways {
		if g.Is6() && no6 {
			continue
		}
		if l.Routes == nil {
			err := addRoute(nl, link, l, Route{Dst: defaultRoute(g), Gateway: g})
			if errors.Is(err, unix.EEXIST) {
				warn("the default route by %v was not added: there is one", g)
			} else if err != nil {
				return &Error{Op: fmt.Sprintf("add the default route by %v", g), Err: err}
			}
		}
		if err := setNeighbour(nl, link, l, g); err != nil {
			return err
		}
	}
	for _, r := range l.Routes {
		if r.Dst.Addr().Is6() && no6 {
			continue
		}
		if err := addRoute(nl, link, l, r); err != nil && !errors.Is(err, unix.EEXIST) {
			warn("the route to %v was not added: %v", r.Dst, err)
		}
	}
	if !no6 {
		awaitReceived(nl, l.Addrs)
	}
	return nil
}

func addRoute(nl *netlink.Handle, link netlink.Link, l *Link, r Route) error {
	return nl.RouteAdd(makeRoute(link, l, r))
}

func makeRoute(link netlink.Link, l *Link, r Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.Dst), Priority: r.Metric, MTU: r.MTU}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	if g := r.Gateway; !g.IsValid() {
		route.Scope = netlink.SCOPE_LINK
	} else {
		route.Gw = g.AsSlice()
		onLink := g.IsLinkLocalUnicast()
		for _, p := range l.Addrs {
			onLink = onLink || p.Contains(g)
		}
		if !onLink {
			route.Flags = int(netlink.FLAG_ONLINK)
		}
	}
	return route
}

// setNeighbour adds a permanent neighbour entry for the gateway g, so that the guest need not resolve it by ARP or NDP.
func setNeighbour(nl *netlink.Handle, link netlink.Link, l *Link, g netip.Addr) error {
	if len(l.GatewayMAC) == 0 {
		return nil
	}
	family := netlink.FAMILY_V4
	if g.Is6() {
		family = netlink.FAMILY_V6
	}
	if err := nl.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, IP: g.AsSlice(),
		HardwareAddr: l.GatewayMAC, State: netlink.NUD_PERMANENT}); err != nil {
		return &Error{Op: fmt.Sprintf("add the neighbour %v", g), Err: err}
	}
	return nil
}

func defaultRoute(g netip.Addr) netip.Prefix {
	if g.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
