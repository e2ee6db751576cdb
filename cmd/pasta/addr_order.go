package main

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// preferTemporary orders the IPv6 addresses of the interface ifName as the host's kernel prefers them as a source. The kernel lists
// them in that order, except that it prefers temporary addresses (RFC 8981) or public ones by the sysctl use_tempaddr, which a
// namespace cannot copy: an address with the flag is the kernel's own.
func preferTemporary(addrs []netlink.Addr, ifName string) {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + ifName + "/use_tempaddr")
	if err != nil {
		return // no IPv6
	}
	use, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	orderAddrs(addrs, use >= 2) // Documentation/networking/ip-sysctl.rst
}

// orderAddrs puts the temporary addresses first or last, and keeps the order otherwise.
func orderAddrs(addrs []netlink.Addr, temporaryFirst bool) {
	slices.SortStableFunc(addrs, func(a, b netlink.Addr) int {
		ta, tb := a.Flags&unix.IFA_F_TEMPORARY != 0, b.Flags&unix.IFA_F_TEMPORARY != 0
		switch {
		case ta == tb:
			return 0
		case ta == temporaryFirst:
			return -1
		}
		return 1
	})
}
