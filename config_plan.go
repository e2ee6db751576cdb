package rootlessnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
)

// plan is a Config with every default filled in and every contradiction found: what Run carries out.
type plan struct {
	network string // NetworkBridge, NetworkHost, NetworkNone, or ContainerPrefix alone
	join    string // the name or id that followed ContainerPrefix
	name    string // empty: the short id
	// hostname is empty for the short id (host mode: the host's; container mode: that of the sandbox joined).
	hostname string

	addrs addressPlan // bridge mode only
	mtu   int
	mac   net.HardwareAddr // the guest's
	// gatewayMAC is ours. It differs from mac in one byte at least.
	gatewayMAC net.HardwareAddr
	ifName     string
	// bare leaves the uplink to somebody else to configure.
	bare bool
	// guests are all addresses of the guest, with their prefixes; those of addrs are the first.
	guests []netip.Prefix
	// What follows is set by a NetworkPlan only. special is never nil then, and neither is dnsAddrs.
	special                            []SpecialAddr
	dnsAddrs                           []netip.Addr
	routes                             []Route // nil: the default routes
	hostAddresses                      bool
	noTCP, noUDP, noICMP, noDHCP, noRA bool
	noNDP, dhcpv6, loopbackToLoopback  bool
	announced                          *Announced

	ports      []PortMapping
	publishAll bool
	listeners  []*os.File

	dns        []netip.Addr
	dnsSearch  []string
	dnsOptions []string
	hosts      []hostEntry

	hostLoopback HostLoopback
	userNS       string
	link         string
	datapath     string

	// warnings are for the user, in the words of docker run.
	warnings []string
}

// hostEntry is one --add-host.
type hostEntry struct {
	name string
	addr netip.Addr // the zero value stands for the gateway's addresses
}

// bridge says that the sandbox has a link and a gateway of ours.
func (p *plan) bridge() bool { return p.network == NetworkBridge || p.network == networkAttach }

// Validate finds what is wrong in c without looking at the host. It returns nil or a *UsageError. Run calls it too.
func (c *Config) Validate() error {
	_, err := c.plan(noHost{})
	return err
}

// noHost is a host without any route.
type noHost struct{}

func (noHost) prefixes() ([]netip.Prefix, error) { return nil, nil }

// plan resolves c against the host. Its error is a *UsageError, or that of the host.
func (c *Config) plan(host hostView) (*plan, error) {
	p := c.basePlan()
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return nil, usage("Argv", "no command specified")
	}
	if err := p.setNetwork(c.Network); err != nil {
		return nil, err
	}
	if err := p.complete(c, host); err != nil {
		return nil, err
	}
	return p, nil
}

// basePlan has what is taken from c as it is.
func (c *Config) basePlan() *plan {
	return &plan{
		name:         c.Name,
		hostname:     c.Hostname,
		mtu:          cmp.Or(c.MTU, DefaultMTU),
		publishAll:   c.PublishAll,
		listeners:    c.Listeners,
		dns:          c.DNS,
		dnsOptions:   c.DNSOptions,
		hostLoopback: c.HostLoopback,
		userNS:       cmp.Or(c.UserNS, UserNSRoot),
		link:         cmp.Or(c.Link, LinkAuto),
		datapath:     cmp.Or(c.Datapath, DatapathAuto),
		ifName:       cmp.Or(c.IfName, uplinkName),
	}
}

// complete checks and fills in everything for the mode that is set.
func (p *plan) complete(c *Config, host hostView) error {
	steps := []func(*Config) error{p.checkNames, p.checkChoices, p.setPorts, p.setDNS, p.checkLink}
	for _, step := range steps {
		if err := step(c); err != nil {
			return err
		}
	}
	switch {
	case p.network == ContainerPrefix:
		return conflicts(c)
	case p.bridge() && c.Plan != nil:
		return p.setPlan(c)
	case p.bridge():
		return p.setAddresses(c, host)
	}
	p.discard(c)
	return nil
}

func (p *plan) setNetwork(network string) error {
	switch network {
	case "", NetworkBridge:
		p.network = NetworkBridge
		return nil
	case NetworkHost, NetworkNone:
		p.network = network
		return nil
	}
	target, ok := strings.CutPrefix(network, ContainerPrefix)
	switch {
	case network == "container" || ok && target == "":
		return usage("Network", "invalid network mode: invalid container format container:<name|id>")
	case !ok:
		return usage("Network", "network %s not found", network)
	}
	p.network, p.join = ContainerPrefix, target
	return nil
}

// conflicts says what cannot be had beside container:NAME, since it belongs to the network's owner.
func conflicts(c *Config) error {
	for _, option := range []struct {
		field string
		set   bool
		words string
	}{
		{"Hostname", c.Hostname != "", "hostname and the network mode"},
		{"DNS", len(c.DNS) > 0 || len(c.DNSSearch) > 0 || len(c.DNSOptions) > 0, "dns and the network mode"},
		{"ExtraHosts", len(c.ExtraHosts) > 0, "custom host-to-IP mapping and the network mode"},
		{"MAC", len(c.MAC) > 0, "mac-address and the network mode"},
		{"IP", c.IP.IsValid() || c.IP6.IsValid(), "ip address and the network mode"},
		{"Subnet", c.Subnet.IsValid() || c.Subnet6.IsValid(), "subnet and the network mode"},
		{"Publish", len(c.Publish) > 0 || c.PublishAll || len(c.Listeners) > 0,
			"port publishing and the container type network mode"},
		{"HostLoopback", c.HostLoopback.All || len(c.HostLoopback.Ports) > 0,
			"host loopback and the container type network mode"},
		{"PCAP", c.PCAP != "", "pcap and the container type network mode"},
		{"UserNS", cmp.Or(c.UserNS, UserNSRoot) != UserNSRoot, "userns and the container type network mode"},
		{"MTU", cmp.Or(c.MTU, DefaultMTU) != DefaultMTU, "mtu and the container type network mode"},
		{"DisableIPv6", c.DisableIPv6, "ipv6 and the container type network mode"},
	} {
		if option.set {
			return usage(option.field, "conflicting options: %s", option.words)
		}
	}
	return nil
}

// discard takes out what host and none mode have no use for, and says so where Docker does. Options that name an
// address are errors, as with Docker: a command that was promised an address must not start without it.
func (p *plan) discard(c *Config) {
	if len(p.ports) > 0 || p.publishAll {
		p.warn("Published ports are discarded when using %s network mode", p.network)
		p.ports, p.publishAll, p.listeners = nil, false, nil
	}
	if c.HostLoopback.All || len(c.HostLoopback.Ports) > 0 {
		p.warn("Host loopback ports are discarded when using %s network mode", p.network)
		p.hostLoopback = HostLoopback{}
	}
	if c.PCAP != "" {
		p.warn("Packet capture is discarded when using %s network mode", p.network)
	}
}

func (p *plan) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

var (
	// nameForm is Docker's (daemon/names).
	nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	// hostnameForm allows what sethostname(2) and resolvers do: labels of RFC 1123, and the underscore that
	// Docker users write.
	hostnameForm = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?)*$`)
)

// maxHostname is __NEW_UTS_LEN (include/uapi/linux/utsname.h).
const maxHostname = 64

// maxName keeps a name within a file name (NAME_MAX is 255), for the state directory has one of that name.
const maxName = 250

func (p *plan) checkNames(*Config) error {
	if p.name != "" && (!nameForm.MatchString(p.name) || len(p.name) > maxName) {
		return usage("Name", "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", p.name)
	}
	if p.hostname != "" && (!hostnameForm.MatchString(p.hostname) || len(p.hostname) > maxHostname) {
		return usage("Hostname", "invalid hostname: %s", p.hostname)
	}
	return nil
}

func (p *plan) checkChoices(c *Config) error {
	if !slices.Contains([]string{UserNSRoot, UserNSKeepID, UserNSAuto}, p.userNS) {
		return usage("UserNS", "invalid userns mode: %q (must be root, keep-id or auto)", p.userNS)
	}
	if slices.Contains(c.HostLoopback.Ports, 0) {
		return usage("HostLoopback", "invalid port: 0")
	}
	return nil
}

func (p *plan) setPorts(c *Config) error {
	ports, err := ParsePortSpecs(c.Publish)
	if err != nil {
		return &UsageError{"Publish", err}
	}
	p.ports = ports
	return nil
}

func (p *plan) setDNS(c *Config) error {
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
	p.dnsSearch = c.DNSSearch
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
		p.hosts = append(p.hosts, entry)
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

// CheckExtraHost says what is wrong with an entry of Config.ExtraHosts, or returns nil.
func CheckExtraHost(spec string) error {
	_, err := parseExtraHost(spec)
	return err
}

// parseExtraHost reads "name:address" or "name=address", the way docker run does: the address may be in brackets.
func parseExtraHost(spec string) (hostEntry, error) {
	name, value, ok := strings.Cut(spec, "=")
	if !ok {
		name, value, ok = strings.Cut(spec, ":")
	}
	if !ok || !hostnameForm.MatchString(name) || len(name) > maxDomain {
		return hostEntry{}, fmt.Errorf("bad format for add-host: %q", spec)
	}
	if value == HostGatewayName {
		return hostEntry{name: name}, nil
	}
	bare := value
	if len(bare) > 2 && bare[0] == '[' && bare[len(bare)-1] == ']' {
		bare = bare[1 : len(bare)-1]
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil || addr.Zone() != "" {
		return hostEntry{}, fmt.Errorf("invalid IP address in add-host: %q", value)
	}
	return hostEntry{name: name, addr: addr.Unmap()}, nil
}

func (p *plan) checkLink(c *Config) error {
	if !slices.Contains([]string{LinkAuto, LinkTAP, LinkTAPPlain, LinkPacket}, p.link) {
		return usage("Link", "invalid link: %q (must be auto, tap, tap-plain or packet)", p.link)
	}
	if !slices.Contains([]string{DatapathAuto, DatapathStack, DatapathSplice}, p.datapath) {
		return usage("Datapath", "invalid datapath: %q (must be auto, stack or splice)", p.datapath)
	}
	if p.mtu < MinMTU || p.mtu > MaxMTU {
		return usage("MTU", "invalid MTU: %d (must be between %d and %d)", c.MTU, MinMTU, MaxMTU)
	}
	if len(p.ifName) > maxIfName || p.ifName == "." || p.ifName == ".." || p.ifName == "lo" ||
		strings.ContainsFunc(p.ifName, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == 0x7f }) {
		return usage("IfName", "invalid interface name: %q", p.ifName)
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
	if !p.bridge() && p.network != ContainerPrefix {
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
