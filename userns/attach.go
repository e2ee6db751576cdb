package userns

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// nameWait is how long the interface name of a helper that has just died may be taken: the kernel removes a TAP
	// when the last descriptor is closed, but a veth pair in a worker of its own (cleanup_net).
	nameWait = 3 * time.Second
	namePoll = 20 * time.Millisecond
)

// setupAttached makes the uplink in a namespace that somebody else made, and configures it if that is wanted. leave, never
// nil on success, takes back what would stay: on a persistent TAP, the device being its maker's. Everything else goes
// with the device.
func setupAttached(b *setupBody, ready *readyBody, w *warnings) (file *os.File, leave func(), err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, &Error{Op: "open netlink", Err: err, Hint: targetHint}
	}
	defer nl.Close()
	l := &b.Link
	before, persistent := describeLink(nl, l.Name)
	dev, err := openFreeName(nl, l)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			dev.file.Close()
		}
	}()
	leave = func() {}
	if persistent && dev.kind != KindPacket {
		if leave, err = restoreTAP(l, before, dev.file); err != nil {
			return nil, nil, err
		}
	}
	if !l.Bare {
		if err := configureAttached(nl, l, dev.kind, w); err != nil {
			leave()
			return nil, nil, err
		}
	}
	ready.Kind, ready.Link = dev.kind, dev.result
	if link, err := nl.LinkByName(l.Name); err == nil {
		ready.Link.MAC = link.Attrs().HardwareAddr
	}
	return dev.file, leave, nil
}

func configureAttached(nl *netlink.Handle, l *Link, kind string, w *warnings) error {
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetUp(lo)
	}
	if err != nil {
		return &Error{Op: "bring lo up", Err: err, Hint: targetHint}
	}
	return configureLink(nl, l, kind, w)
}

// describeLink returns the interface of that name, nil for none, and whether it is a persistent TAP.
func describeLink(nl *netlink.Handle, name string) (link netlink.Link, persistent bool) {
	link, err := nl.LinkByName(name)
	if err != nil {
		return nil, false
	}
	t, ok := link.(*netlink.Tuntap)
	return link, ok && t.Mode == netlink.TUNTAP_MODE_TAP && !t.NonPersist
}

// openFreeName opens the link, and waits while the name is still that of a device whose owner is gone.
func openFreeName(nl *netlink.Handle, l *Link) (*device, error) {
	deadline := time.Now().Add(nameWait)
	for {
		dev, err := openLink(l)
		if err == nil {
			return dev, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		link, _ := describeLink(nl, l.Name)
		if link != nil && link.Type() != "tuntap" && link.Type() != "veth" || time.Now().After(deadline) {
			return nil, &Error{Op: "make the interface " + l.Name, Err: unix.EEXIST,
				Hint: "another helper serves this namespace, or the name is another interface's"}
		}
		time.Sleep(namePoll)
	}
}

// restoreTAP returns what puts a persistent TAP back as it was: up or down, MTU and hardware address, without the
// addresses, routes and neighbours we add, and with no offload, which its next user may not know of. Our copy of its
// descriptor keeps the device attached until then.
func restoreTAP(l *Link, before netlink.Link, file *os.File) (func(), error) {
	had, err := netlink.AddrList(before, netlink.FAMILY_ALL)
	if err != nil {
		return nil, &Error{Op: "list the addresses of " + l.Name, Err: err}
	}
	fd, err := dupAbove(file)
	if err != nil {
		return nil, &Error{Op: "keep " + l.Name, Err: err}
	}
	attrs := *before.Attrs()
	return func() {
		defer unix.Close(fd)
		_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
		if l.Bare {
			return
		}
		// An error means that it is not there any more, or that the namespace is going.
		for _, r := range l.routes() {
			_ = netlink.RouteDel(&netlink.Route{LinkIndex: attrs.Index, Dst: ipNet(r.Dst), Gw: r.Gateway.AsSlice(), Priority: r.Metric})
		}
		for _, g := range l.Gateways {
			_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: attrs.Index, IP: g.AsSlice(), HardwareAddr: l.GatewayMAC})
		}
		for _, p := range l.Addrs {
			if !hasAddr(had, fmt.Sprint(p)) {
				_ = netlink.AddrDel(before, &netlink.Addr{IPNet: ipNet(p)})
			}
		}
		if attrs.Flags&unix.IFF_UP == 0 {
			_ = netlink.LinkSetDown(before)
		}
		_ = netlink.LinkSetHardwareAddr(before, attrs.HardwareAddr)
		_ = netlink.LinkSetMTU(before, attrs.MTU)
	}, nil
}

func hasAddr(list []netlink.Addr, cidr string) bool {
	for _, a := range list {
		if a.IPNet != nil && a.IPNet.String() == cidr {
			return true
		}
	}
	return false
}
