package plan

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// Addresses are a sandbox's subnets and the addresses of the gateway and the guest in them. The fields of an address family
// that is off are zero.
type Addresses struct {
	Subnet, Subnet6   netip.Prefix
	Gateway, Gateway6 netip.Addr
	Guest, Guest6     netip.Addr
}

// Host numbers within a subnet. Scripts rely on them, because slirp4netns has the same.
const (
	gatewayNumber = 2
	guestNumber   = 100
	// guestNumber6 makes the IPv6 address end in ::100, like the IPv4 address in .100.
	guestNumber6 = 0x100
)

// Prefix lengths a subnet may have: it must have at least a network, gateway, guest and broadcast address, and no shorter than the
// private ranges (RFC 1918) and the unique local ones (RFC 4193).
const (
	minBits, maxBits   = 8, 30
	minBits6, maxBits6 = 8, 126
)

// Host is what Resolve reads from the host. hostnet.Routes implements it.
type Host interface {
	// Prefixes returns the destinations of the host's routes, and the networks its addresses are in. Default routes
	// are among them.
	Prefixes() ([]netip.Prefix, error)
}

// wideRoute is the prefix length below which a route of the host counts as a part of a default route: VPNs set 0.0.0.0/1 and
// 128.0.0.0/1. Such a route does not mean that its addresses are in use.
const wideRoute = 8

// candidates are the subnets tried in order when none is given.
func candidates() []netip.Prefix {
	var list []netip.Prefix
	for _, r := range []struct {
		a, b        byte
		first, last int
	}{{10, 0, 2, 255}, {172, 31, 0, 255}, {192, 168, 0, 255}} {
		for third := r.first; third <= r.last; third++ {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{r.a, r.b, byte(third), 0}), 24))
		}
	}
	return list
}

// candidates6 are the IPv6 subnets tried in order when none is given. The 40 bits after fd were drawn at random once, as RFC
// 4193 section 3.2.2 demands; all sandboxes share them, since the prefix never leaves the sandbox.
func candidates6() []netip.Prefix {
	const tries = 256 // as many as the smallest of the IPv4 ranges
	base := [16]byte{0xfd, 0x52, 0x6e, 0x65, 0x74}
	list := make([]netip.Prefix, tries)
	for i := range list {
		base[7] = byte(i)
		list[i] = netip.PrefixFrom(netip.AddrFrom16(base), 64)
	}
	return list
}

// setAddresses chooses the subnets and addresses of a sandbox without a NetworkPlan.
func (p *Plan) setAddresses(c *Config, host Host) error {
	taken, err := host.Prefixes()
	_, unknown := host.(noHost)
	known := !unknown
	if err != nil {
		// Not fatal: only the choice of a subnet depends on the routes.
		p.warn("Cannot read the host's routes: %v", err)
	}
	if c.IP.IsValid() && !c.IP.Is4() {
		return usage("IP", "invalid IPv4 address: %s", c.IP)
	}
	if c.Subnet.IsValid() && !c.Subnet.Addr().Is4() {
		return usage("Subnet", "invalid subnet %s: not an IPv4 network", c.Subnet)
	}
	a := &p.Addrs
	if a.Subnet, err = p.chooseSubnet("Subnet", "IP", c.Subnet, c.IP, candidates(), taken, known); err != nil {
		return err
	}
	a.Gateway = nth(a.Subnet, gatewayNumber)
	if a.Guest, err = guestAddress("IP", a.Subnet, a.Gateway, c.IP, guestNumber); err != nil {
		return err
	}

	if c.IP6.IsValid() && (!c.IP6.Is6() || c.IP6.Is4In6() || c.IP6.Zone() != "") {
		return usage("IP6", "invalid IPv6 address: %s", c.IP6)
	}
	if c.Subnet6.IsValid() && (!c.Subnet6.Addr().Is6() || c.Subnet6.Addr().Is4In6()) {
		return usage("Subnet6", "invalid subnet %s: not an IPv6 network", c.Subnet6)
	}
	switch wanted := c.IP6.IsValid() || c.Subnet6.IsValid(); {
	case c.DisableIPv6 && wanted:
		return usage("IP6", "conflicting options: IPv6 address and disabled IPv6")
	case p.MTU < MinMTU6 && wanted:
		return usage("MTU", "invalid MTU: %d (IPv6 needs %d)", p.MTU, MinMTU6)
	case c.DisableIPv6:
	case p.MTU < MinMTU6:
		p.warn("IPv6 is off: it needs an MTU of %d", MinMTU6)
	default:
		if a.Subnet6, err = p.chooseSubnet("Subnet6", "IP6", c.Subnet6, c.IP6, candidates6(), taken, known); err != nil {
			return err
		}
		a.Gateway6 = nth(a.Subnet6, gatewayNumber)
		if a.Guest6, err = guestAddress("IP6", a.Subnet6, a.Gateway6, c.IP6, guestNumber6); err != nil {
			return err
		}
	}

	p.GuestPrefixes = []netip.Prefix{netip.PrefixFrom(a.Guest, a.Subnet.Bits())}
	if a.Guest6.IsValid() {
		p.GuestPrefixes = append(p.GuestPrefixes, netip.PrefixFrom(a.Guest6, a.Subnet6.Bits()))
	}
	p.setMACs(c, nil)
	return nil
}

// chooseSubnet returns want, or the first of list that collides with nothing. An ip without want must be in that one: the gateway
// and the default route are, and a caller that wants another network says so.
func (p *Plan) chooseSubnet(field, ipField string, want netip.Prefix, ip netip.Addr, list, taken []netip.Prefix, known bool) (netip.Prefix, error) {
	free := func(candidate netip.Prefix) bool {
		return !slices.ContainsFunc(taken, func(t netip.Prefix) bool {
			return t.Bits() >= wideRoute && t.Overlaps(candidate)
		})
	}
	if want.IsValid() {
		if masked := want.Masked(); masked != want {
			return want, usage(field, "invalid subnet %s: it should be %s", want, masked)
		}
		low, high := minBits, maxBits
		if want.Addr().Is6() {
			low, high = minBits6, maxBits6
		}
		if want.Bits() < low || want.Bits() > high {
			return want, usage(field, "invalid subnet %s: prefix length needs to be %d-%d", want, low, high)
		}
		if a := want.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.Is6() && a.IsLinkLocalUnicast() ||
			a.Is4() && a.As4()[0] >= 240 {
			return want, usage(field, "invalid subnet %s: not a network of ordinary addresses", want)
		}
		if !free(want) {
			p.warn("Subnet %s hides addresses the host has a route to", want)
		}
		return want, nil
	}
	chosen := slices.IndexFunc(list, free)
	if ip.IsValid() {
		// Without the host's routes the choice is not known yet, only that it will be one of the list.
		contains := func(c netip.Prefix) bool { return c.Contains(ip) }
		if !known && slices.ContainsFunc(list, contains) {
			return list[slices.IndexFunc(list, contains)], nil
		}
		if subnet := list[max(chosen, 0)]; !subnet.Contains(ip) {
			return want, usage(ipField, "no configured subnet contains IP address %s (the subnet is %s unless another is given)", ip, subnet)
		}
	}
	if chosen >= 0 {
		return list[chosen], nil
	}
	// All private ranges are routed, as some VPNs do. It is better to hide a few addresses than to have no sandbox.
	p.warn("Subnet %s hides addresses the host has a route to", list[0])
	return list[0], nil
}

// guestAddress returns want after checking it, or, if it is zero, the address of the subnet with that host number; in a subnet
// that is too small, the last address.
func guestAddress(field string, subnet netip.Prefix, gateway, want netip.Addr, number uint64) (netip.Addr, error) {
	if !want.IsValid() {
		guest := nth(subnet, number)
		if last := lastHost(subnet); !subnet.Contains(guest) || last.Less(guest) {
			guest = last
		}
		if guest == gateway {
			guest = gateway.Prev()
		}
		return guest, nil
	}
	switch {
	case !subnet.Contains(want):
		return want, usage(field, "no configured subnet contains IP address %s", want)
	case want == gateway:
		return want, usage(field, "Address already in use")
	case want == subnet.Addr() || lastHost(subnet).Less(want):
		return want, usage(field, "invalid IP address %s: network or broadcast address of %s", want, subnet)
	}
	return want, nil
}

// nth is the address of a subnet with that host number. The sum must not overflow the low 64 bits.
func nth(subnet netip.Prefix, number uint64) netip.Addr {
	b := subnet.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+number)
	return netip.AddrFrom16(b).Unmap()
}

// lastHost is the highest address that a host may have: for IPv4 the address below the broadcast address.
func lastHost(subnet netip.Prefix) netip.Addr {
	b := subnet.Addr().AsSlice()
	for bit := subnet.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	if last.Is4() {
		return last.Prev()
	}
	return last
}

// macFor makes a locally administered MAC address of an IPv4 address, as Docker's bridge does, or of the last four bytes of an
// IPv6 address.
func macFor(ip netip.Addr) net.HardwareAddr {
	b := ip.As16()
	return net.HardwareAddr{0x02, 0x42, b[12], b[13], b[14], b[15]}
}

// setMACs chooses the hardware addresses of both ends, which must differ.
func (p *Plan) setMACs(c *Config, gateway net.HardwareAddr) {
	a := &p.Addrs
	if p.GatewayMAC = slices.Clone(gateway); p.GatewayMAC == nil {
		p.GatewayMAC = macFor(a.Gateways()[0])
	}
	if p.MAC = slices.Clone(c.MAC); p.MAC == nil {
		if p.MAC = macFor(a.Guest6); a.Guest.IsValid() {
			p.MAC = macFor(a.Guest)
		}
	}
	if slices.Equal(p.MAC, p.GatewayMAC) {
		// The caller gave the guest the MAC address that is derived from the gateway's IP address.
		p.GatewayMAC = slices.Clone(p.GatewayMAC)
		p.GatewayMAC[1] ^= 1
	}
}

// Gateways are the gateways of the address families that are on, IPv4 first.
func (a *Addresses) Gateways() (list []netip.Addr) {
	for _, g := range []netip.Addr{a.Gateway, a.Gateway6} {
		if g.IsValid() {
			list = append(list, g)
		}
	}
	return list
}

// GatewayOf is the gateway of addr's family; the zero value if that is off.
func (a *Addresses) GatewayOf(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return a.Gateway
	}
	return a.Gateway6
}
