package userns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setupNetwork brings lo up and, for NetworkNew, opens and configures the uplink. It is in the namespace already.
func setupNetwork(b *setupBody, ready *readyBody, w *warnings) (*os.File, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &Error{Op: "open netlink", Err: err, Hint: doctorHint}
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetUp(lo)
	}
	if err != nil {
		return nil, &Error{Op: "bring lo up", Err: err, Hint: doctorHint}
	}
	setSysctls(b.GIDs, w)
	if b.Network != NetworkNew {
		return nil, nil
	}
	dev, err := openLink(&b.Link)
	if err != nil {
		return nil, err
	}
	ready.Kind, ready.Link = dev.kind, dev.result
	if !slices.ContainsFunc(b.Link.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		// Without IPv6 there is no address of the link's either, as with Docker: nothing tries it.
		_ = writeSysctl("net/ipv6/conf/"+b.Link.Name+"/disable_ipv6", "1") // an error: no IPv6 at all, or not at this MTU
	}
	if err := configureLink(nl, &b.Link, dev.kind, w); err != nil {
		dev.file.Close()
		return nil, err
	}
	dev.keepTAP()
	return dev.file, nil
}

// setSysctls gives the sandbox what Docker gives its containers: ping sockets for everyone and no privileged ports.
func setSysctls(gids idRange, w *warnings) {
	// net/ipv4/ping.c takes a range of gids that are mapped; the last of them may be no more than 2^31-1.
	last := uint64(gids.First)
	if gids.Count > 0 {
		last += uint64(gids.Count) - 1
	}
	last = min(last, 1<<31-1)
	for _, s := range []struct{ name, value string }{
		{"net/ipv4/ping_group_range", fmt.Sprintf("%d %d", gids.First, last)},
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{sysctlCongestion, insideCongestion},
	} {
		if err := writeSysctl(s.name, s.value); err != nil {
			w.add("sysctl %s: %v", strings.ReplaceAll(s.name, "/", "."), err)
		}
	}
}

// Between the sandbox and us nothing is ever lost or slow, so the congestion control inside has nothing to do: the simplest
// does it with the least work (one that paces, as BBR, costs a third of the throughput here). On the way through the
// network the host's own sockets use the host's.
const (
	sysctlCongestion = "net/ipv4/tcp_congestion_control"
	insideCongestion = "reno"
)

// writeSysctl sets a sysctl of the calling thread's network namespace: /proc/sys/net shows that, whoever mounted it.
func writeSysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
	return unwrapErrno(err)
}

// configureLink sets up the interface l.Name, which exists and is down.
func configureLink(nl *netlink.Handle, l *Link, kind string, w *warnings) error {
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
	if len(l.MAC) > 0 && kind != KindPacket { // a veth got its address when it was made
		if err := op("address", nl.LinkSetHardwareAddr(link, l.MAC)); err != nil {
			return err
		}
	}
	var have6 bool
	for _, p := range l.Addrs {
		have6 = have6 || p.Addr().Is6()
	}
	if have6 {
		// Before it is up. The addresses are ours to give: nobody else on the wire has them, so that waiting for
		// duplicates is lost time, and a router advertisement must not add others.
		for _, name := range []string{"accept_ra", "accept_dad"} {
			err := writeSysctl("net/ipv6/conf/"+l.Name+"/"+name, "0")
			if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: no IPv6, or not at this MTU
				w.add("sysctl %s of %s: %v", name, l.Name, err)
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
				w.add("no IPv6 inside: address %v: %v", p, err)
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
				w.add("the default route by %v was not added: there is one", g)
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
			w.add("the route to %v was not added: %v", r.Dst, err)
		}
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

// setNeighbour spares the guest the question who the gateway is.
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
