package plan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

var (
	// nameForm is Docker's (daemon/names).
	nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	// hostnameForm allows what sethostname(2) and resolvers accept: the labels of RFC 1123, and the underscore, which Docker
	// users write.
	hostnameForm = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?)*$`)
)

// maxHostname is __NEW_UTS_LEN (include/uapi/linux/utsname.h).
const maxHostname = 64

// maxName keeps a name within the limit of file names (NAME_MAX is 255), because the state directory has a file of that name.
const maxName = 250

func (p *Plan) checkNames(*Config) error {
	if p.Name != "" && (!nameForm.MatchString(p.Name) || len(p.Name) > maxName) {
		return usage("Name", "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", p.Name)
	}
	if p.Hostname != "" && (!hostnameForm.MatchString(p.Hostname) || len(p.Hostname) > maxHostname) {
		return usage("Hostname", "invalid hostname: %s", p.Hostname)
	}
	return nil
}

func (p *Plan) checkChoices(c *Config) error {
	if !slices.Contains([]string{UserNSKeepID, UserNSRoot, UserNSAuto}, p.UserNS) {
		return usage("UserNS", "invalid userns mode: %q (must be keep-id, root or auto)", p.UserNS)
	}
	if slices.Contains(c.HostLoopback.Ports, 0) {
		return usage("HostLoopback", "invalid port: 0")
	}
	return nil
}

func (p *Plan) setPorts(c *Config) error {
	ports, err := ParsePortSpecs(c.Publish)
	if err != nil {
		return &UsageError{"Publish", err}
	}
	p.Ports = ports
	return nil
}

func (p *Plan) setDNS(c *Config) error {
	for _, addr := range c.DNS {
		if !addr.IsValid() || addr.IsUnspecified() {
			return usage("DNS", "IP address is not correctly formatted: %s", addr)
		}
	}
	for _, domain := range c.DNSSearch {
		if err := checkSearchDomain(domain); err != nil {
			return &UsageError{"DNSSearch", err}
		}
	}
	p.DNSSearch = c.DNSSearch
	for _, option := range c.DNSOptions {
		if option == "" || strings.ContainsFunc(option, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return usage("DNSOptions", "invalid dns option: %q", option)
		}
	}
	for _, spec := range c.ExtraHosts {
		entry, err := parseExtraHost(spec)
		if err != nil {
			return &UsageError{"ExtraHosts", err}
		}
		p.Hosts = append(p.Hosts, entry)
	}
	return nil
}

// maxDomain is the length of a domain name in text (RFC 1035 section 2.3.4).
const maxDomain = 253

func checkSearchDomain(domain string) error {
	if domain == "." {
		return nil
	}
	if name := strings.TrimSuffix(domain, "."); len(name) > maxDomain || !hostnameForm.MatchString(name) {
		return fmt.Errorf("%s is not a valid domain", domain)
	}
	return nil
}

// CheckExtraHost returns the error of an invalid entry of Config.ExtraHosts, or nil.
func CheckExtraHost(spec string) error {
	_, err := parseExtraHost(spec)
	return err
}

// parseExtraHost reads "name:address" or "name=address" as docker run does: the address may be in brackets.
func parseExtraHost(spec string) (ExtraHost, error) {
	name, value, ok := strings.Cut(spec, "=")
	if !ok {
		name, value, ok = strings.Cut(spec, ":")
	}
	if !ok || !hostnameForm.MatchString(name) || len(name) > maxDomain {
		return ExtraHost{}, fmt.Errorf("bad format for add-host: %q", spec)
	}
	if value == HostGatewayName {
		return ExtraHost{Name: name}, nil
	}
	bare := value
	if len(bare) > 2 && bare[0] == '[' && bare[len(bare)-1] == ']' {
		bare = bare[1 : len(bare)-1]
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil || addr.Zone() != "" {
		return ExtraHost{}, fmt.Errorf("invalid IP address in add-host: %q", value)
	}
	return ExtraHost{Name: name, Addr: addr.Unmap()}, nil
}

// maxIfName is IFNAMSIZ (include/uapi/linux/if.h) without the final zero.
const maxIfName = 15

func (p *Plan) checkLink(c *Config) error {
	if !slices.Contains([]string{LinkAuto, LinkTAP, LinkTAPPlain, LinkPacket}, p.Link) {
		return usage("Link", "invalid link: %q (must be auto, tap, tap-plain or packet)", p.Link)
	}
	if !slices.Contains([]string{DatapathAuto, DatapathStack, DatapathSplice}, p.Datapath) {
		return usage("Datapath", "invalid datapath: %q (must be auto, stack or splice)", p.Datapath)
	}
	if p.TCPBuffers < MinTCPBuffers {
		return usage("TCPBuffers", "invalid size of the TCP buffers: %d bytes (must be at least %d)", p.TCPBuffers, MinTCPBuffers)
	}
	if p.MTU < MinMTU || p.MTU > MaxMTU {
		return usage("MTU", "invalid MTU: %d (must be between %d and %d)", c.MTU, MinMTU, MaxMTU)
	}
	if len(p.IfName) > maxIfName || p.IfName == "." || p.IfName == ".." || p.IfName == "lo" ||
		strings.ContainsFunc(p.IfName, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == 0x7f }) {
		return usage("IfName", "invalid interface name: %q", p.IfName)
	}
	if a := c.OutboundAddr; a.IsValid() && !a.Is4() {
		return usage("OutboundAddr", "invalid IPv4 address: %s", a)
	}
	if a := c.OutboundAddr6; a.IsValid() && (!a.Is6() || a.Is4In6() || a.Zone() != "") {
		return usage("OutboundAddr6", "invalid IPv6 address: %s", a)
	}
	if len(c.MAC) > 0 {
		if len(c.MAC) != 6 || c.MAC[0]&1 != 0 || slices.Equal(c.MAC, make(net.HardwareAddr, 6)) {
			return usage("MAC", "%s is not a valid mac address", c.MAC)
		}
	}
	if !p.HasGateway() && p.Network != ContainerPrefix {
		switch {
		case len(c.MAC) > 0:
			return usage("MAC", "conflicting options: mac-address and the network mode")
		case c.IP.IsValid() || c.IP6.IsValid():
			return usage("IP", "conflicting options: ip address and the network mode")
		case c.Subnet.IsValid() || c.Subnet6.IsValid():
			return usage("Subnet", "conflicting options: subnet and the network mode")
		}
	}
	return nil
}

func usage(field, format string, args ...any) error {
	return &UsageError{field, fmt.Errorf(format, args...)}
}

// ParseHostLoopback reads "all", or ports separated by commas; the empty string names none.
func ParseHostLoopback(s string) (HostLoopback, error) {
	var h HostLoopback
	switch s {
	case "":
		return h, nil
	case "all":
		return HostLoopback{All: true}, nil
	}
	for word := range strings.SplitSeq(s, ",") {
		port, err := parsePort(word)
		if err != nil {
			return HostLoopback{}, err
		}
		h.Ports = append(h.Ports, port)
	}
	return h, nil
}

func parsePort(word string) (uint16, error) {
	addr, err := netip.ParseAddrPort("0.0.0.0:" + word)
	if err != nil || addr.Port() == 0 {
		return 0, errors.New("invalid port: " + word)
	}
	return addr.Port(), nil
}
