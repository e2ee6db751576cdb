package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// elsewhere4 and elsewhere6 are addresses of other networks (RFC 5737, RFC 3849), for which the host's routes are asked.
var (
	elsewhere4 = netip.MustParseAddr("192.0.2.1")
	elsewhere6 = netip.MustParseAddr("2001:db8::1")
)

// Own returns the addresses under which other machines know the host, one of each family: the source that the host's routes choose,
// or else the first address of global scope of an interface that is up. An address is the zero value if the host has none but
// loopback and link-local ones.
func Own() (v4, v6 netip.Addr) {
	return own(netlink.FAMILY_V4, elsewhere4), own(netlink.FAMILY_V6, elsewhere6)
}

func own(family int, elsewhere netip.Addr) netip.Addr {
	if routes, err := netlink.RouteGet(elsewhere.AsSlice()); err == nil && len(routes) > 0 {
		if a := ordinary(routes[0].Src); a.IsValid() {
			return a
		}
	}
	addrs, err := netlink.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return netip.Addr{}
	}
	for _, addr := range addrs {
		if addr.IPNet == nil || addr.Scope != int(netlink.SCOPE_UNIVERSE) || addr.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED) != 0 {
			continue
		}
		if a := ordinary(addr.IP); a.IsValid() && up(addr.LinkIndex) {
			return a
		}
	}
	return netip.Addr{}
}

// ordinary is ip, if it is an address that other machines may have a route to.
func ordinary(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !a.IsGlobalUnicast() {
		return netip.Addr{}
	}
	return a
}

func up(index int) bool {
	i, err := net.InterfaceByIndex(index)
	return err == nil && i.Flags&net.FlagUp != 0
}

const (
	// quiet is how long no message may arrive before a change is reported: one change makes several messages.
	quiet = 100 * time.Millisecond
	// most bounds the wait for quiet.
	most = time.Second
	// messageSize is the size of the read buffer in bytes. What is read is discarded, so a message may be cut off.
	messageSize = 32 << 10
)

// addressGroups are the multicast groups of rtnetlink(7) that announce changes of addresses (include/uapi/linux/rtnetlink.h).
const addressGroups = 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)

// Watch calls changed once at the beginning and after each change of the host's addresses, until ctx ends. The error is that of the
// socket.
func Watch(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("watch the host's addresses: %w", err)
	}
	file := os.NewFile(uintptr(fd), "rtnetlink")
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: addressGroups}); err != nil {
		return fmt.Errorf("watch the host's addresses: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, messageSize)
	for changed(); ctx.Err() == nil; changed() {
		if err := await(ctx, file, buf, time.Time{}); err != nil {
			return err
		}
		for latest := time.Now().Add(most); ctx.Err() == nil && time.Now().Before(latest); {
			switch err := await(ctx, file, buf, time.Now().Add(quiet)); {
			case errors.Is(err, os.ErrDeadlineExceeded):
				latest = time.Time{}
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// await waits for a message, and returns nil when ctx has ended.
func await(ctx context.Context, file *os.File, buf []byte, deadline time.Time) error {
	if err := file.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("watch the host's addresses: %w", err)
	}
	if ctx.Err() != nil {
		return nil // its end may have come before the deadline was set
	}
	_, err := file.Read(buf)
	switch {
	case err == nil || errors.Is(err, unix.ENOBUFS): // ENOBUFS: messages were lost
		return nil
	case ctx.Err() != nil:
		return nil
	}
	return err
}
