package netns

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// nameWait is how long the interface of a helper that has just ended may still have the name: the kernel removes a TAP when
	// the last descriptor is closed, but a veth pair later, in a worker (cleanup_net).
	nameWait = 3 * time.Second
	namePoll = 20 * time.Millisecond
)

// Attach opens the uplink in the namespace of the process, which another program made, and configures it unless l.Bare.
// restore, never nil on success, undoes what would outlive the device: the configuration of a persistent TAP, which
// belongs to the program that made it. The kernel removes the rest with the device. The error is an *Error.
func Attach(l *Link, warn Warn) (dev *Device, restore func(), err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, &Error{Op: "open netlink", Err: err, Hint: HintOwner}
	}
	defer nl.Close()
	before, persistent := describeLink(nl, l.Name)
	if dev, err = openFreeName(nl, l); err != nil {
		return nil, nil, err
	}
	defer func(opened *Device) {
		if err != nil {
			opened.File.Close()
		}
	}(dev)
	restore = func() {}
	if persistent && dev.Kind != KindPacket {
		if restore, err = restoreTAP(l, before, dev.File); err != nil {
			return nil, nil, err
		}
	}
	if !l.Bare {
		err := setLoopbackUp()
		if err != nil {
			err = &Error{Op: "bring lo up", Err: err, Hint: HintOwner}
		} else {
			err = configureLink(nl, l, dev.Kind, warn)
		}
		if err != nil {
			restore()
			return nil, nil, err
		}
	}
	if link, err := nl.LinkByName(l.Name); err == nil {
		dev.Result.MAC = link.Attrs().HardwareAddr
	}
	return dev, restore, nil
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

// openFreeName opens the link, and waits while a device of a helper that has ended still has the name.
func openFreeName(nl *netlink.Handle, l *Link) (*Device, error) {
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

// restoreTAP returns a function that restores a persistent TAP: up or down, MTU and MAC address, without the IP
// addresses, routes and neighbours of l, and without offloads, which its next user may not expect. A copy of the descriptor
// keeps the device attached until then.
func restoreTAP(l *Link, before netlink.Link, file *os.File) (func(), error) {
	had, err := netlink.AddrList(before, netlink.FAMILY_ALL)
	if err != nil {
		return nil, &Error{Op: "list the addresses of " + l.Name, Err: err}
	}
	fd, err := dupFD(file)
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
		// Errors are ignored: the address, the route or the namespace no longer exists.
		for _, r := range l.routes() {
			_ = netlink.RouteDel(&netlink.Route{LinkIndex: attrs.Index, Dst: ipNet(r.Dst), Gw: r.Gateway.AsSlice(), Priority: r.metric()})
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
