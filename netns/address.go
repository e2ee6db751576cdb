package netns

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

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
	for _, p := range inAddOrder(l.Addrs) {
		if err := nl.AddrAdd(link, l.address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
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
		awaitLocal(nl, l.Addrs)
	}
	return nil
}

const (
	// localWait bounds the wait for an address to be usable, which takes a fraction of a millisecond, or some on a busy machine.
	localWait = time.Second
	localPoll = 200 * time.Microsecond
)

// awaitLocal waits until the kernel delivers packets to the IPv6 addresses among addrs. It adds their local routes in a worker after
// the address, also without duplicate address detection (net/ipv6/addrconf.c, addrconf_dad_work); until then a connection
// to or from the address fails.
func awaitLocal(nl *netlink.Handle, addrs []netip.Prefix) {
	deadline := time.Now().Add(localWait)
	for _, p := range addrs {
		for p.Addr().Is6() && !isLocal(nl, p.Addr()) && time.Now().Before(deadline) {
			time.Sleep(localPoll)
		}
	}
}

func isLocal(nl *netlink.Handle, a netip.Addr) bool {
	routes, err := nl.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// address is p as an address of the interface.
func (l *Link) address(p netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(p), ValidLft: forever(), PreferedLft: forever()}
	if slices.Contains(l.Deprecated, p.Addr()) {
		addr.PreferedLft = 0
	}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

// forever is the lifetime of an address without an end (INFINITY_LIFE_TIME), or 68 years where an int has 32 bits.
func forever() int {
	infinite := int64(math.MaxUint32)
	return int(min(infinite, int64(math.MaxInt)))
}

// inAddOrder is the order in which addresses are added so that the kernel prefers the first of each family as the source of what
// it sends, where no rule decides (RFC 6724, 5). It takes the IPv4 address that was added first (net/ipv4/devinet.c,
// __inet_insert_ifa, inet_select_addr) and the IPv6 address that was added last (net/ipv6/addrconf.c, ipv6_link_dev_addr).
func inAddOrder(addrs []netip.Prefix) []netip.Prefix {
	list := make([]netip.Prefix, 0, len(addrs))
	for _, p := range addrs {
		if p.Addr().Is4() {
			list = append(list, p)
		}
	}
	for _, p := range slices.Backward(addrs) {
		if p.Addr().Is6() {
			list = append(list, p)
		}
	}
	return list
}

func addRoute(nl *netlink.Handle, link netlink.Link, l *Link, r Route) error {
	return nl.RouteAdd(makeRoute(link, l, r))
}

// metric6 is the metric that the kernel gives an IPv6 route without one (IP6_RT_PRIO_USER, include/net/ip6_route.h).
const metric6 = 1024

// metric is the metric with which the kernel keeps the route.
func (r Route) metric() int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return metric6
	}
	return r.Metric
}

func makeRoute(link netlink.Link, l *Link, r Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.Dst), Priority: r.metric(), MTU: r.MTU}
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
