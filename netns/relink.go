package netns

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Relink gives the uplink l, as it is configured, the addresses, routes and gateways of want, and records them in l. What is
// the same before and after is not touched, so that connections of an address that stays go on. What the kernel refuses is a
// warning. For a bare link there is nothing to do. The error is an *Error.
func Relink(l, want *Link, warn Warn) error {
	if l.Bare {
		return nil
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return &Error{Op: "open netlink", Err: err}
	}
	defer nl.Close()
	link, err := nl.LinkByName(l.Name)
	if err != nil {
		return &Error{Op: "find " + l.Name, Err: err}
	}
	old := *l
	l.Addrs, l.Deprecated, l.Gateways, l.Routes = want.Addrs, want.Deprecated, want.Gateways, want.Routes
	// Removing an address must not remove those of its subnet that were added after it (net/ipv4/devinet.c, __inet_del_ifa).
	promoted := writeSysctl("net/ipv4/conf/"+l.Name+"/promote_secondaries", "1") == nil
	// New addresses are added before old ones are removed: with its last address the interface would lose every route.
	gone := changeAddrs(nl, link, &old, l, promoted, warn)
	for _, g := range l.Gateways {
		if slices.Contains(old.Gateways, g) {
			continue
		}
		if err := setNeighbour(nl, link, l, g); err != nil {
			warn("%v", err)
		}
	}
	changeRoutes(nl, link, &old, l, gone, warn)
	for _, g := range old.Gateways {
		if !slices.Contains(l.Gateways, g) {
			_ = nl.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: g.AsSlice(), HardwareAddr: l.GatewayMAC})
		}
	}
	return nil
}

// changeAddrs adds the addresses of now, removes those of old that are not among them, and sets the preferred lifetime of the
// others where that changes; gone reports whether it removed any. promoted is set if an address stays when one before it in its
// subnet is removed.
func changeAddrs(nl *netlink.Handle, link netlink.Link, old, now *Link, promoted bool, warn Warn) (gone bool) {
	add := func(all bool) {
		for _, p := range inAddOrder(now.Addrs) {
			if !all && slices.Contains(old.Addrs, p) {
				continue // if it is missing, a process inside has removed it
			}
			if err := nl.AddrAdd(link, now.address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
				warn("the address %v was not added: %v", p, err)
			}
		}
	}
	add(false)
	awaitLocal(nl, slices.DeleteFunc(slices.Clone(now.Addrs), func(p netip.Prefix) bool { return slices.Contains(old.Addrs, p) }))
	changeLifetimes(nl, link, old, now, warn)
	for _, p := range old.Addrs {
		if !slices.Contains(now.Addrs, p) {
			gone = true
			_ = nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}) // an error: a process inside has removed it
		}
	}
	if gone && !promoted {
		add(true) // those that the kernel removed as well
	}
	return gone
}

// changeLifetimes sets the preferred lifetime of the addresses that stay and whose deprecation changes.
func changeLifetimes(nl *netlink.Handle, link netlink.Link, old, now *Link, warn Warn) {
	var have []netlink.Addr
	for _, p := range now.Addrs {
		if !slices.Contains(old.Addrs, p) || slices.Contains(old.Deprecated, p.Addr()) == slices.Contains(now.Deprecated, p.Addr()) {
			continue
		}
		if have == nil {
			have, _ = nl.AddrList(link, netlink.FAMILY_ALL)
		}
		if !hasAddr(have, p.String()) {
			continue // a process inside has removed it
		}
		if err := nl.AddrReplace(link, now.address(p)); err != nil {
			warn("the lifetime of the address %v was not changed: %v", p, err)
		}
	}
}

// changeRoutes sets the routes of now that old does not have, or with all every one, since some may have gone with an
// address, and removes those of old that now does not have.
func changeRoutes(nl *netlink.Handle, link netlink.Link, old, now *Link, all bool, warn Warn) {
	type place struct {
		dst    string
		metric int
	}
	at := func(r Route) place { return place{r.Dst.String(), r.metric()} }
	taken, before := map[place]bool{}, old.routes()
	for _, r := range now.routes() {
		taken[at(r)] = true
		if !all && slices.Contains(before, r) {
			continue
		}
		// It replaces a route of the same destination and metric in one step: at no time is there no default route.
		if err := nl.RouteReplace(makeRoute(link, now, r)); err != nil {
			warn("the route to %v was not added: %v", r.Dst, err)
		}
	}
	for _, r := range before {
		if !taken[at(r)] && hasRoute(nl, link, r) {
			_ = nl.RouteDel(makeRoute(link, old, r)) // an error: a process inside has removed it
		}
	}
}

// hasRoute reports whether the interface has the route, with its own metric. To delete an IPv4 route of metric 0, which may have gone
// with its source address, would delete one of another metric (net/ipv4/fib_semantics.c, fib_nh_match).
func hasRoute(nl *netlink.Handle, link netlink.Link, r Route) bool {
	family := netlink.FAMILY_V4
	if r.Dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := nl.RouteList(link, family)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(list, func(have netlink.Route) bool {
		return have.Priority == r.metric() && have.Dst != nil && have.Dst.String() == ipNet(r.Dst).String() &&
			have.Gw.Equal(r.Gateway.AsSlice())
	})
}

// routes are the routes that are set up: l.Routes, or the default routes.
func (l *Link) routes() []Route {
	if l.Routes != nil {
		return l.Routes
	}
	var list []Route
	for _, g := range l.Gateways {
		list = append(list, Route{Dst: defaultRoute(g), Gateway: g})
	}
	return list
}
