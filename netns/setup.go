package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// GIDRange is Count group ids of the namespace's user namespace, from First on.
type GIDRange struct {
	First, Count uint32
}

// SetUp configures the namespace of the process, which was made for this sandbox: lo up, the sysctls that Docker sets for its
// containers, and, unless l is nil, the uplink, which is opened and configured. gids are the group ids that may open ping
// sockets. dev is nil without l. The error is an *Error.
func SetUp(l *Link, gids GIDRange, warn Warn) (dev *Device, err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &Error{Op: "open netlink", Err: err, Hint: HintDoctor}
	}
	defer nl.Close()
	if err := setLoopbackUp(); err != nil {
		return nil, &Error{Op: "bring lo up", Err: err, Hint: HintDoctor}
	}
	setSysctls(gids, warn)
	if l == nil {
		return nil, nil
	}
	if dev, err = openLink(l); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		// Without an IPv6 address of ours the link has no link-local one either, as with Docker: programs then do not try IPv6.
		_ = writeSysctl("net/ipv6/conf/"+l.Name+"/disable_ipv6", "1") // an error: no IPv6 at all, or not at this MTU
	}
	if err := configureLink(nl, l, dev.Kind, warn); err != nil {
		dev.File.Close()
		return nil, err
	}
	dev.persistTAP()
	return dev, nil
}

// setSysctls sets what Docker sets for its containers: ping sockets for all groups, and no privileged ports.
func setSysctls(gids GIDRange, warn Warn) {
	// net/ipv4/ping.c takes a range of gids that are mapped; the last of them may be no more than 2^31-1.
	last := uint64(gids.First)
	if gids.Count > 0 {
		last += uint64(gids.Count) - 1
	}
	last = min(last, 1<<31-1)
	for _, s := range []sysctl{
		{name: "net/ipv4/ping_group_range", value: fmt.Sprintf("%d %d", gids.First, last)},
		{name: "net/ipv4/ip_unprivileged_port_start", value: "0"},
		{name: sysctlCongestion, value: insideCongestion},
	} {
		if err := writeSysctl(s.name, s.value); err != nil {
			warn("sysctl %s: %v", strings.ReplaceAll(s.name, "/", "."), err)
		}
	}
}
