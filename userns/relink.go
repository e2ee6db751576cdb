package userns

import (
	"context"
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Relink gives the uplink other addresses, routes and gateways: those of l, whose other fields are ignored. What is the
// same before and after is not touched, so connections by an address that stays do not notice. A route that the kernel
// refuses is a warning. Where the link was left bare there is nothing to do.
func (s *Sandbox) Relink(ctx context.Context, l Link) error {
	l, err := l.withDefaults()
	if err != nil {
		return &Error{Op: "configuration", Err: err}
	}
	r, err := s.request(ctx, &message{Type: msgRelink, Relink: &l}, msgReady)
	if err != nil {
		return err
	}
	for _, w := range r.m.Ready.Warnings {
		s.log.Warn(w)
	}
	return nil
}

// relink runs inside. It changes l, which is what the uplink is like, to what want says.
func relink(l, want *Link) (w warnings, err error) {
	if l.Bare {
		return nil, nil
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &Error{Op: "open netlink", Err: err}
	}
	defer nl.Close()
	link, err := nl.LinkByName(l.Name)
	if err != nil {
		return nil, &Error{Op: "find " + l.Name, Err: err}
	}
	old := *l
	l.Addrs, l.Gateways, l.Routes = want.Addrs, want.Gateways, want.Routes
	// An address must not take along those of its subnet that were added after it (net/ipv4/devinet.c, __inet_del_ifa).
	promoted := writeSysctl("net/ipv4/conf/"+l.Name+"/promote_secondaries", "1") == nil
	// The new ones first: with its last address the interface would lose every route.
	gone := changeAddrs(nl, link, &old, l, promoted, &w)
	for _, g := range l.Gateways {
		if slices.Contains(old.Gateways, g) {
			continue
		}
		if err := setNeighbour(nl, link, l, g); err != nil {
			w.add("%v", err)
		}
	}
	changeRoutes(nl, link, &old, l, gone, &w)
	for _, g := range old.Gateways {
		if !slices.Contains(l.Gateways, g) {
			_ = nl.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: g.AsSlice(), HardwareAddr: l.GatewayMAC})
		}
	}
	return w, nil
}

// changeAddrs says whether any has gone.
func changeAddrs(nl *netlink.Handle, link netlink.Link, old, now *Link, promoted bool, w *warnings) (gone bool) {
	add := func(all bool) {
		for _, p := range now.Addrs {
			if !all && slices.Contains(old.Addrs, p) {
				continue // if it is not there, somebody inside did not want it
			}
			addr := &netlink.Addr{IPNet: ipNet(p)}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := nl.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
				w.add("the address %v was not added: %v", p, err)
			}
		}
	}
	add(false)
	for _, p := range old.Addrs {
		if !slices.Contains(now.Addrs, p) {
			gone = true
			_ = nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}) // or somebody inside has
		}
	}
	if gone && !promoted {
		add(true) // whatever went along
	}
	return gone
}

// changeRoutes sets those that are new, and all of them when some may have gone with an address.
func changeRoutes(nl *netlink.Handle, link netlink.Link, old, now *Link, all bool, w *warnings) {
	type place struct {
		dst    string
		metric int
	}
	at := func(r Route) place { return place{r.Dst.String(), r.Metric} }
	taken, before := map[place]bool{}, old.routes()
	for _, r := range now.routes() {
		taken[at(r)] = true
		if !all && slices.Contains(before, r) {
			continue
		}
		// In one step, where there was another: nobody is without a default route in between.
		if err := nl.RouteReplace(makeRoute(link, now, r)); err != nil {
			w.add("the route to %v was not added: %v", r.Dst, err)
		}
	}
	for _, r := range before {
		if !taken[at(r)] {
			_ = nl.RouteDel(makeRoute(link, old, r)) // it may have gone with its source address
		}
	}
}

// routes are those that are set up, whether they were named or not.
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
