package plan

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// NetworkAttach is the Plan.Network of a network namespace that another program made (ResolveAttach). It is also the
// network mode in that sandbox's state record. Config.Network never has this value.
const NetworkAttach = "attach"

// UplinkName is the default name of the guest's interface, the same as in a Docker container.
const UplinkName = "eth0"

// Plan is a Config with every default filled in and every contradiction found. The packages gateway and sandbox carry it
// out. A Plan is not changed after it was resolved; Readdressed makes a changed copy.
type Plan struct {
	Network string // NetworkBridge, NetworkHost, NetworkNone, NetworkAttach, or ContainerPrefix alone
	Join    string // the name or id that followed ContainerPrefix
	Name    string // empty: the sandbox's short id
	// Hostname is empty for the default: the short id; in host mode the host's name; in container mode the name of the
	// sandbox that is joined.
	Hostname string

	Addrs      Addresses // the zero value without a gateway
	MTU        int       // bytes, without the Ethernet header
	MAC        net.HardwareAddr
	GatewayMAC net.HardwareAddr // differs from MAC in at least one byte
	IfName     string
	// Unconfigured has the uplink created and left down; another program assigns its addresses and routes.
	Unconfigured bool
	// GuestPrefixes are all addresses of the guest, each with its on-link prefix length. Addrs.Guest and Addrs.Guest6 are the
	// first of their families.
	GuestPrefixes []netip.Prefix

	// The following fields are set only from a NetworkPlan, see there. Special is never nil in that case.
	Special                                   []SpecialAddr
	Routes                                    []Route // nil: a default route by each gateway
	HostAddresses                             bool
	NoTCP, NoUDP, NoICMP, NoDHCP, NoRA, NoNDP bool
	DHCPv6, LoopbackToLoopback                bool
	Announced                                 *Announced
	Deprecated                                []netip.Addr
	dnsAddrs                                  []netip.Addr // nil: the gateways; otherwise from Special

	Ports      []PortMapping
	PublishAll bool
	Listeners  []*os.File // sockets that the caller has bound

	DNS        []netip.Addr
	DNSSearch  []string
	DNSOptions []string
	Hosts      []ExtraHost

	HostLoopback  HostLoopback
	AllowMetadata bool
	UDPFullCone   bool
	Outbound      Outbound
	PCAP          string // path of the capture file; empty: no capture
	UserNS        string
	User          *User // nil: the user that UserNS gives
	Caps          []int // numbers of the capabilities of Config.CapAdd (capability.h)
	Sysctls       []Sysctl
	StopSignal    syscall.Signal
	Link          string
	Datapath      string
	TCPBuffers    int64

	// Warnings are for the user, with the texts of docker run.
	Warnings []string
}

// Outbound is the source that sockets on the host are bound to. A zero field leaves the choice to the host's routes.
type Outbound struct {
	Addr, Addr6           netip.Addr
	Interface, Interface6 string // names of the host's interfaces
}

// ExtraHost is one entry of Config.ExtraHosts.
type ExtraHost struct {
	Name string
	Addr netip.Addr // the zero value means the addresses that are translated to the host (Plan.HostAddrs)
}

// HasGateway reports whether the sandbox has a link and a gateway.
func (p *Plan) HasGateway() bool { return p.Network == NetworkBridge || p.Network == NetworkAttach }

// Validate checks c without reading the host's routes. It returns nil or a *UsageError. Run validates its Config too.
func (c *Config) Validate() error {
	_, err := Resolve(c, noHost{})
	return err
}

// noHost is a host without routes.
type noHost struct{}

func (noHost) Prefixes() ([]netip.Prefix, error) { return nil, nil }

// Resolve makes the plan of a command's sandbox. The error is a *UsageError.
func Resolve(c *Config, host Host) (*Plan, error) {
	p := base(c)
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

// base is a plan with the fields that are copied from c or only need a default.
func base(c *Config) *Plan {
	return &Plan{
		Name:          c.Name,
		Hostname:      c.Hostname,
		MTU:           cmp.Or(c.MTU, DefaultMTU),
		PublishAll:    c.PublishAll,
		Listeners:     c.Listeners,
		DNS:           c.DNS,
		DNSOptions:    c.DNSOptions,
		HostLoopback:  c.HostLoopback,
		AllowMetadata: c.AllowMetadata,
		UDPFullCone:   c.UDPFullCone,
		Outbound:      c.outbound(),
		PCAP:          c.PCAP,
		UserNS:        cmp.Or(c.UserNS, DefaultUserNS),
		Link:          cmp.Or(c.Link, LinkAuto),
		Datapath:      cmp.Or(c.Datapath, DatapathAuto),
		TCPBuffers:    cmp.Or(c.TCPBuffers, DefaultTCPBuffers),
		IfName:        cmp.Or(c.IfName, UplinkName),
	}
}

func (c *Config) outbound() Outbound {
	return Outbound{Addr: c.OutboundAddr, Addr6: c.OutboundAddr6, Interface: c.OutboundIf, Interface6: c.OutboundIf6}
}

// complete checks and fills in everything that depends on the network mode.
func (p *Plan) complete(c *Config, host Host) error {
	steps := []func(*Config) error{p.checkNames, p.setUser, p.checkChoices, p.setProcess, p.setPorts, p.setDNS, p.checkLink}
	for _, step := range steps {
		if err := step(c); err != nil {
			return err
		}
	}
	switch {
	case p.Network == ContainerPrefix:
		return conflicts(c)
	case p.HasGateway() && c.Plan != nil:
		return p.setPlan(c)
	case p.HasGateway():
		return p.setAddresses(c, host)
	}
	p.discard(c)
	return nil
}

func (p *Plan) setNetwork(network string) error {
	switch network {
	case "", NetworkBridge:
		p.Network = NetworkBridge
		return nil
	case NetworkHost, NetworkNone:
		p.Network = network
		return nil
	}
	target, ok := strings.CutPrefix(network, ContainerPrefix)
	switch {
	case network == "container" || ok && target == "":
		return usage("Network", "invalid network mode: invalid container format container:<name|id>")
	case !ok:
		return usage("Network", "network %s not found", network)
	}
	p.Network, p.Join = ContainerPrefix, target
	return nil
}

// conflicts refuses the options that cannot be combined with container:NAME, because the sandbox that is joined decides them.
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
		{"UDPFullCone", c.UDPFullCone, "udp full cone and the container type network mode"},
		{"PCAP", c.PCAP != "", "pcap and the container type network mode"},
		{"UserNS", cmp.Or(c.UserNS, DefaultUserNS) != DefaultUserNS, "userns and the container type network mode"},
		{"Sysctls", len(c.Sysctls) > 0, "sysctl and the network mode"},
		{"MTU", cmp.Or(c.MTU, DefaultMTU) != DefaultMTU, "mtu and the container type network mode"},
		{"DisableIPv6", c.DisableIPv6, "ipv6 and the container type network mode"},
	} {
		if option.set {
			return usage(option.field, "conflicting options: %s", option.words)
		}
	}
	return nil
}

// discard removes what host and none mode cannot use, and warns where Docker does. Options that name an address are errors
// (checkLink), as with Docker: a command that was to have an address must not start without it.
func (p *Plan) discard(c *Config) {
	if len(p.Ports) > 0 || p.PublishAll {
		p.warn("Published ports are discarded when using %s network mode", p.Network)
		p.Ports, p.PublishAll, p.Listeners = nil, false, nil
	}
	if c.HostLoopback.All || len(c.HostLoopback.Ports) > 0 {
		p.warn("Host loopback ports are discarded when using %s network mode", p.Network)
		p.HostLoopback = HostLoopback{}
	}
	if c.PCAP != "" {
		p.warn("Packet capture is discarded when using %s network mode", p.Network)
	}
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}
