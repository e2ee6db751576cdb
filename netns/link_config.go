package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Kinds of link devices, as in Link.Kind and LinkResult. Package tap has the same names.
const (
	KindAuto     = "auto"      // the first of the following that works
	KindTAP      = "tap"       // TAP with virtio-net headers and offloads
	KindTAPPlain = "tap-plain" // TAP without them
	KindPacket   = "packet"    // veth pair, its far end read by AF_PACKET in a second network namespace
)

// Link describes the uplink, the interface by which a namespace reaches the supervisor's stack.
type Link struct {
	Kind       string           // one of the Kind constants; "" is KindAuto
	Name       string           // interface name; "" is "eth0"
	MTU        int              // bytes, without the Ethernet header; 0 is 65520
	MAC        net.HardwareAddr // nil: the kernel's choice
	Addrs      []netip.Prefix   // addresses with their on-link prefix, the preferred one of each family first; may be empty
	Deprecated []netip.Addr     // those of Addrs that get no preferred lifetime: they stay usable, and are not chosen as a source
	Gateways   []netip.Addr     // next hops of default routes, at most one for each address family
	GatewayMAC net.HardwareAddr // when set, the gateways get permanent neighbour entries
	// Routes are set up instead of the default routes; nil means those. One that the kernel refuses is a warning.
	Routes []Route
	// Bare leaves the interface as it is made, down and without addresses, and leaves lo as it is. For Attach only.
	Bare bool
}

// Route is one route by the uplink.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // the zero value: on the link
	Source  netip.Addr // preferred source address; may be zero
	Metric  int
	MTU     int // bytes; 0: the interface's
}

// LinkResult says what the link device that was opened can do, in both directions, and why it is this one.
type LinkResult struct {
	CSum bool // partial checksums
	TSO  bool // TCP frames of up to 64 KiB
	USO  bool // UDP_L4 frames
	// MAC is the address of the interface, set by Attach: the interface may have existed with an address of its own.
	MAC net.HardwareAddr
	// Refused names the kinds that were tried before this one, and why each did not work. Empty for the first choice.
	Refused []Refusal
}

// Refusal is one kind of link that could not be opened.
type Refusal struct {
	Kind   string
	Reason string
}

const (
	defaultLinkName = "eth0"
	defaultMTU      = 65520
	// minMTU is IPv4's (RFC 791). IPv6 needs 1280, and the kernel disables it on an interface with less.
	minMTU = 68
	// maxMTU keeps a frame with its Ethernet header within 65535 bytes (drivers/net/tun.c, MAX_MTU - ETH_HLEN).
	maxMTU = 65521
	// maxIfName is IFNAMSIZ without the final NUL.
	maxIfName = 15
)

// WithDefaults returns l with its zero fields filled in, or an error that says which field cannot work.
func (l Link) WithDefaults() (Link, error) {
	if l.Kind == "" {
		l.Kind = KindAuto
	}
	if l.Name == "" {
		l.Name = defaultLinkName
	}
	if l.MTU == 0 {
		l.MTU = defaultMTU
	}
	switch l.Kind {
	case KindAuto, KindTAP, KindTAPPlain, KindPacket:
	default:
		return l, fmt.Errorf("unknown link kind %q", l.Kind)
	}
	if l.MTU < minMTU || l.MTU > maxMTU {
		return l, fmt.Errorf("MTU %d is not within %d..%d", l.MTU, minMTU, maxMTU)
	}
	if len(l.Name) > maxIfName {
		return l, fmt.Errorf("interface name %q is longer than %d bytes", l.Name, maxIfName)
	}
	for _, m := range []net.HardwareAddr{l.MAC, l.GatewayMAC} {
		if len(m) != 0 && len(m) != 6 {
			return l, fmt.Errorf("%v is not an Ethernet address", m)
		}
	}
	for _, p := range l.Addrs {
		if !p.IsValid() || p.Addr().Is4In6() {
			return l, fmt.Errorf("invalid address %v", p)
		}
	}
	var have4, have6 bool
	for _, g := range l.Gateways {
		if !g.IsValid() || g.Is4In6() {
			return l, errors.New("invalid gateway")
		}
		if (g.Is4() && have4) || (g.Is6() && have6) {
			return l, fmt.Errorf("second gateway of a family: %v", g)
		}
		have4, have6 = have4 || g.Is4(), have6 || g.Is6()
	}
	return l, nil
}
