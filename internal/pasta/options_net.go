package pasta

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// setNetwork stores the value of one option about interfaces, addresses and names.
func (p *parser) setNetwork(key, value string) (err error) {
	o := p.o
	switch key {
	case "ns-ifname", "interface", "outbound-if4", "outbound-if6":
		if value == "" || len(value) > maxIfName || strings.ContainsAny(value, "/ ") {
			return fmt.Errorf("Invalid interface name: %q", value)
		}
		*map[string]*string{"ns-ifname": &o.IfName, "interface": &o.Template, "outbound-if4": &o.Out4If, "outbound-if6": &o.Out6If}[key] = value
	case "mtu":
		o.MTU, err = strconv.Atoi(value)
		if err != nil || o.MTU < 0 || o.MTU > maxMTU {
			return fmt.Errorf("Invalid MTU: %s", value)
		}
	case "address":
		return p.setAddress(value)
	case "netmask":
		return p.setNetmask(value)
	case "mac-addr":
		o.MAC, err = parseMAC(value)
	case "ns-mac-addr":
		o.NSMAC, err = parseMAC(value)
	case "gateway":
		o.Gateways, err = lastOfFamily(o.Gateways, key, value)
	case "outbound":
		a, err := netip.ParseAddr(value)
		if err != nil || a.Is4In6() || a.IsMulticast() || a.IsLoopback() {
			return fmt.Errorf("Invalid or redundant outbound address: %s", value)
		}
		if a.Is4() {
			o.Out4 = a
		} else {
			o.Out6 = a
		}
	case "dns":
		return p.setDNS(value)
	case "search":
		switch value {
		case "none", "":
			o.Search, o.SearchOff = nil, true
		default:
			o.Search, o.SearchOff = append(o.Search, strings.Fields(value)...), false
		}
	case "dns-forward":
		o.DNSForward, err = lastOfFamily(o.DNSForward, key, value)
	case "dns-host":
		o.DNSHost, err = lastOfFamily(o.DNSHost, key, value)
	case "map-host-loopback":
		if value == "none" {
			o.MapLoopback, o.NoMapLoopback = nil, true
			return nil
		}
		o.MapLoopback, err = lastOfFamily(o.MapLoopback, key, value)
		o.NoMapLoopback = false
	case "map-guest-addr":
		if value == "none" {
			o.MapGuest = nil
			return nil
		}
		o.MapGuest, err = lastOfFamily(o.MapGuest, key, value)
	default:
		return fmt.Errorf("unhandled option --%s", key)
	}
	return err
}

// lastOfFamily returns list with the address value, which replaces an address of the same family.
func lastOfFamily(list []netip.Addr, key, value string) ([]netip.Addr, error) {
	a, err := netip.ParseAddr(value)
	if err != nil || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		what := map[string]string{"gateway": "gateway address", "dns-forward": "DNS forwarding address", "dns-host": "DNS host address",
			"map-host-loopback": "address to remap to host", "map-guest-addr": "address to remap to host"}[key]
		// A resolver of the host may be on the host's loopback.
		if err != nil || key != "dns-host" || !a.IsLoopback() {
			return nil, fmt.Errorf("Invalid %s: %s", what, value)
		}
	}
	a = a.WithZone("")
	list = slices.DeleteFunc(slices.Clone(list), func(have netip.Addr) bool { return have.Is4() == a.Is4() })
	return append(list, a), nil
}

func (p *parser) setAddress(value string) error {
	text, length, hasLength := strings.Cut(value, "/")
	a, err := netip.ParseAddr(text)
	if err != nil || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("Invalid address: %s", value)
	}
	bits := 0
	if hasLength {
		n, err := strconv.ParseUint(length, 10, 8)
		if err != nil || n < 1 || int(n) > a.BitLen() {
			return fmt.Errorf("Invalid prefix length: %s", value)
		}
		bits = int(n)
	}
	// The last address of a family is used.
	p.o.Addrs = slices.DeleteFunc(p.o.Addrs, func(have Address) bool { return have.Addr.Is4() == a.Is4() })
	p.o.Addrs = append(p.o.Addrs, Address{a, bits})
	return nil
}

func (p *parser) setNetmask(value string) error {
	if n, err := strconv.ParseUint(value, 10, 8); err == nil && n >= 1 && n <= 32 {
		p.o.Netmask = int(n)
		return nil
	}
	if a, err := netip.ParseAddr(value); err == nil && a.Is4() {
		b := a.As4()
		if ones, bits := net.IPv4Mask(b[0], b[1], b[2], b[3]).Size(); bits == 32 && ones > 0 {
			p.o.Netmask = ones
			return nil
		}
	}
	return fmt.Errorf("Invalid netmask: %s", value)
}

func (p *parser) setDNS(value string) error {
	o := p.o
	if value == "none" || value == "" {
		o.DNS, o.DNSOff = nil, true
		return nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil || a.IsUnspecified() || a.IsMulticast() {
		return fmt.Errorf("Cannot use DNS address: %s", value)
	}
	if len(o.DNS) == 2*maxDNS {
		return fmt.Errorf("Too many DNS servers: %s", value)
	}
	o.DNS, o.DNSOff = append(o.DNS, a), false
	return nil
}

func parseMAC(value string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(value)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("Invalid MAC address: %s", value)
	}
	return mac, nil
}

// DefaultBits returns the prefix length of an IPv4 address given without one: that of the address's class, as with ifconfig.
func DefaultBits(a netip.Addr) int {
	switch b := a.As4(); {
	case b[0] < 128:
		return 8
	case b[0] < 192:
		return 16
	default:
		return 24
	}
}
