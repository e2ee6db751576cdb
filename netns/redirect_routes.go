package netns

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// redirectSysctls: accept_local, because a re-injected SYN arrives on lo from an address of the namespace itself;
// tcp_fwmark_accept, so that an accepted connection has the mark of its SYN; fwmark_reflect, so that a reset or an ICMP
// error has the mark of the packet that it answers.
func redirectSysctls(ipv6 bool) []sysctl {
	list := []sysctl{
		{name: "net/ipv4/conf/lo/accept_local", value: "1"},
		{name: "net/ipv4/tcp_fwmark_accept", value: "1"},
		{name: "net/ipv4/fwmark_reflect", value: "1"},
		{name: sysctlCongestion, value: insideCongestion, optional: true},
	}
	if ipv6 {
		list = append(list, sysctl{name: "net/ipv6/fwmark_reflect", value: "1"})
	}
	return list
}

func families(ipv6 bool) []int {
	if ipv6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

// redirectRoutes routes what has one of the three marks of redirectMask to lo: a policy rule, and a table with a local route
// for every address. The kernel reaches a local address by lo, whichever interface its route names. The second route, which
// names the uplink, is for sockets that are bound to the uplink (SO_BINDTODEVICE) and would match no other; without an uplink
// (index 0) there is none. u gets the steps back, also when there is an error.
func redirectRoutes(families []int, uplink int, u *undo) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, f := range families {
		all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if f == netlink.FAMILY_V6 {
			all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		for metric, index := range []int{lo.Attrs().Index, uplink} {
			if index == 0 {
				continue
			}
			route := &netlink.Route{Family: f, Dst: all, LinkIndex: index, Table: redirectTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Priority: metric + 1}
			// EEXIST: left by a helper that was killed. ENETDOWN: the program that made the uplink has not set it up yet; bound
			// sockets then have no connections by the redirect.
			if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) && !(metric > 0 && errors.Is(err, unix.ENETDOWN)) {
				return err
			}
			u.add(func() { _ = netlink.RouteDel(route) })
		}
		rule := netlink.NewRule()
		mask := redirectMask
		rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = f, markRedirect, &mask, redirectTable, redirectPref
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		u.add(func() { _ = netlink.RuleDel(rule) })
	}
	return nil
}
