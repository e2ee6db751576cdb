package topo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of every Topo, from the ranges for documentation (RFC 5737, RFC 3849).
var (
	Here4  = netip.MustParseAddr("198.51.100.1")
	Here6  = netip.MustParseAddr("2001:db8:1::1")
	There4 = netip.MustParseAddr("198.51.100.2")
	There6 = netip.MustParseAddr("2001:db8:1::2")

	// There4b and There6b are further addresses of "there": clients that are not neighbours.
	There4b = netip.MustParseAddr("192.0.2.77")
	There6b = netip.MustParseAddr("2001:db8:77::77")

	// Destinations that "there" answers as a router would. Each network is /24 or /48.
	Blackhole4   = netip.MustParseAddr("203.0.113.1")      // no answer
	Unreachable4 = netip.MustParseAddr("198.18.1.1")       // ICMP host unreachable
	Prohibited4  = netip.MustParseAddr("198.18.2.1")       // ICMP administratively prohibited
	Blackhole6   = netip.MustParseAddr("2001:db8:dead::1") // no answer
	Unreachable6 = netip.MustParseAddr("2001:db8:bad::1")  // ICMPv6 no route
	Prohibited6  = netip.MustParseAddr("2001:db8:f0::1")   // ICMPv6 administratively prohibited
)

// Link is the name of the veth interface in both namespaces.
const Link = "lan0"

// Options of a Topo. The zero value works.
type Options struct {
	MTU    int  // of the veth, in bytes; 0 means 1500
	NoPing bool // leave unprivileged ping sockets forbidden in "here", as the kernel has them
}

// Topo is one pair of namespaces.
type Topo struct {
	Here, There *NS
	IPv6        bool // false where the kernel has none
}

// New makes the namespaces, the link, addresses and routes. Enter must have returned before.
func New(o Options) (*Topo, error) {
	if o.MTU == 0 {
		o.MTU = 1500
	}
	t := &Topo{}
	_, err := os.Stat("/proc/sys/net/ipv6")
	t.IPv6 = err == nil
	if t.Here, err = NewNS(); err != nil {
		return nil, err
	}
	if t.There, err = NewNS(); err != nil {
		t.Here.Close()
		return nil, err
	}
	if err := t.build(o); err != nil {
		t.Close()
		return nil, fmt.Errorf("topo: %w", err)
	}
	return t, nil
}

// Close kills what NS.Command started and closes both namespaces.
func (t *Topo) Close() {
	t.Here.Close()
	t.There.Close()
}

func (t *Topo) build(o Options) error {
	err := t.Here.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: Link, MTU: o.MTU},
			PeerName:      Link,
			PeerMTU:       uint32(o.MTU),
			PeerNamespace: netlink.NsFd(t.There.file.Fd()),
		})
	})
	if err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	if err := t.sysctls(o); err != nil {
		return err
	}
	if err := t.Here.Do(func() error { return t.address(Here4, Here6, 24, 64) }); err != nil {
		return fmt.Errorf("here: %w", err)
	}
	if err := t.There.Do(func() error {
		return errors.Join(t.address(There4, There6, 24, 64), t.address(There4b, There6b, 32, 128))
	}); err != nil {
		return fmt.Errorf("there: %w", err)
	}
	if err := t.Here.Do(func() error { return t.defaultRoutes() }); err != nil {
		return fmt.Errorf("here: %w", err)
	}
	if err := t.There.Do(func() error { return t.answeringRoutes() }); err != nil {
		return fmt.Errorf("there: %w", err)
	}
	return nil
}

func (t *Topo) sysctls(o Options) error {
	type setting struct {
		ns          *NS
		name, value string
	}
	settings := []setting{
		// "there" answers as a router, without a limit on ICMP errors.
		{t.There, "ipv4/ip_forward", "1"},
		{t.There, "ipv4/icmp_ratelimit", "0"},
		// Its servers bind port 53 and 80 like any other.
		{t.There, "ipv4/ip_unprivileged_port_start", "0"},
	}
	if !o.NoPing {
		// For the product's user; the kernel accepts only groups that are mapped.
		group := fmt.Sprintf("%d %d", os.Getgid(), os.Getgid())
		settings = append(settings, setting{t.Here, "ipv4/ping_group_range", group})
	}
	if t.IPv6 {
		settings = append(settings,
			setting{t.There, "ipv6/conf/all/forwarding", "1"},
			setting{t.There, "ipv6/icmp/ratelimit", "0"},
			// Link-local addresses work at once: no other machine is on this link.
			setting{t.Here, "ipv6/conf/" + Link + "/accept_dad", "0"},
			setting{t.There, "ipv6/conf/" + Link + "/accept_dad", "0"})
	}
	for _, s := range settings {
		if err := s.ns.Sysctl(s.name, s.value); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	return nil
}

// address brings lo and the link up and adds one address of each family.
func (t *Topo) address(v4, v6 netip.Addr, bits4, bits6 int) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	link, err := netlink.LinkByName(Link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", Link, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(v4, bits4)}); err != nil {
		return fmt.Errorf("add %v: %w", v4, err)
	}
	if !t.IPv6 {
		return nil
	}
	// Without duplicate address detection it can be bound at once.
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(v6, bits6), Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("add %v: %w", v6, err)
	}
	return nil
}

func (t *Topo) defaultRoutes() error {
	link, err := netlink.LinkByName(Link)
	if err != nil {
		return err
	}
	routes := []netlink.Route{{LinkIndex: link.Attrs().Index, Gw: There4.AsSlice()}}
	if t.IPv6 {
		routes = append(routes, netlink.Route{LinkIndex: link.Attrs().Index, Gw: There6.AsSlice()})
	}
	return addRoutes(routes)
}

func (t *Topo) answeringRoutes() error {
	routes := []netlink.Route{
		{Dst: network(Blackhole4, 24), Type: unix.RTN_BLACKHOLE},
		{Dst: network(Unreachable4, 24), Type: unix.RTN_UNREACHABLE},
		{Dst: network(Prohibited4, 24), Type: unix.RTN_PROHIBIT},
	}
	if t.IPv6 {
		routes = append(routes,
			netlink.Route{Dst: network(Blackhole6, 48), Type: unix.RTN_BLACKHOLE},
			netlink.Route{Dst: network(Unreachable6, 48), Type: unix.RTN_UNREACHABLE},
			netlink.Route{Dst: network(Prohibited6, 48), Type: unix.RTN_PROHIBIT})
	}
	return addRoutes(routes)
}

func addRoutes(routes []netlink.Route) error {
	for i := range routes {
		if err := netlink.RouteAdd(&routes[i]); err != nil {
			return fmt.Errorf("add route %v: %w", routes[i], err)
		}
	}
	return nil
}

func ipNet(addr netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

// network is the prefix of the given length around addr.
func network(addr netip.Addr, bits int) *net.IPNet {
	return ipNet(netip.PrefixFrom(addr, bits).Masked().Addr(), bits)
}
