package pasta

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"rootlessnet/internal/getopt"
)

// Defaults and limits of the options.
const (
	DefaultMTU     = 65520
	maxMTU         = 65520
	defaultLogSize = 1 << 20
	minLogSize     = 4 << 10
	maxDNS         = 3 // servers of a family; resolvers use as many at most (resolv.conf(5), MAXNS)
)

// Options holds a valid command line.
type Options struct {
	Help, Version bool

	// The namespace to connect: that of a process, a network namespace by path, or else new ones for a command.
	PID              int
	NetNS, UserNS    string
	NoNetNSQuit      bool
	Command          []string
	Foreground       bool
	PIDFile, PCAP    string
	LogFile          string
	LogSize          int64
	Stderr, Quiet    bool
	Debug            bool
	Hostname, FQDN   string
	ControlSocket    string
	IPv4Off, IPv6Off bool

	IfName         string
	ConfigNet      bool
	NoCopyAddrs    bool
	NoCopyRoutes   bool
	Addrs          []Address
	Netmask        int // of the IPv4 address; 0: not given
	Gateways       []netip.Addr
	MAC, NSMAC     net.HardwareAddr // of the gateway, and of the namespace's interface
	MTU            int
	Template       string // host's interface whose addresses and routes are copied
	Out4If, Out6If string
	Out4, Out6     netip.Addr
	NoTCP, NoUDP   bool
	NoICMP, NoDHCP bool
	NoDHCPv6       bool
	NoRA, NoNDP    bool
	DHCPDNS        bool // --dhcp-dns: DHCP, DHCPv6 and RA announce the resolvers
	DHCPSearch     bool

	DNS           []netip.Addr
	DNSOff        bool // -D none: no server is announced
	Search        []string
	SearchOff     bool
	DNSForward    []netip.Addr // addresses in the namespace whose queries go to the resolvers; one of each family at most
	DNSHost       []netip.Addr // resolvers to use instead of the host's
	MapLoopback   []netip.Addr // addresses that are translated to the host's loopback; nil: the gateways
	NoMapLoopback bool
	MapGuest      []netip.Addr // addresses that are translated to the host's own address
	HostLoToNSLo  bool         // clients on the host's loopback connect to the namespace's loopback
	NoSplice      bool

	TCP, UDP     PortSpec // from the host to the namespace
	TCPNS, UDPNS PortSpec // from the namespace's loopback to the host's
}

// Address is the value of one -a.
type Address struct {
	Addr netip.Addr
	Bits int // 0: not given
}

var optionTable = []getopt.Option{
	{Name: "debug", Char: 'd'}, {Name: "trace"}, {Name: "quiet", Char: 'q'}, {Name: "foreground", Char: 'f'},
	{Name: "stderr", Char: 'e'}, {Name: "log-file", Char: 'l', Arg: getopt.Required}, {Name: "log-size", Arg: getopt.Required},
	{Name: "help", Char: 'h'}, {Name: "version"},
	{Name: "ns-ifname", Char: 'I', Arg: getopt.Required}, {Name: "pcap", Char: 'p', Arg: getopt.Required},
	{Name: "pid", Char: 'P', Arg: getopt.Required}, {Name: "mtu", Char: 'm', Arg: getopt.Required},
	{Name: "address", Char: 'a', Arg: getopt.Required}, {Name: "netmask", Char: 'n', Arg: getopt.Required},
	{Name: "mac-addr", Char: 'M', Arg: getopt.Required}, {Name: "gateway", Char: 'g', Arg: getopt.Required},
	{Name: "interface", Char: 'i', Arg: getopt.Required}, {Name: "outbound", Char: 'o', Arg: getopt.Required},
	{Name: "outbound-if4", Arg: getopt.Required}, {Name: "outbound-if6", Arg: getopt.Required},
	{Name: "dns", Char: 'D', Arg: getopt.Required}, {Name: "search", Char: 'S', Arg: getopt.Required},
	{Name: "dns-forward", Arg: getopt.Required}, {Name: "dns-host", Arg: getopt.Required},
	{Name: "no-tcp"}, {Name: "no-udp"}, {Name: "no-icmp"}, {Name: "no-dhcp"}, {Name: "no-dhcpv6"}, {Name: "no-ra"}, {Name: "no-ndp"},
	{Name: "no-map-gw"}, {Name: "map-host-loopback", Arg: getopt.Required}, {Name: "map-guest-addr", Arg: getopt.Required},
	{Name: "host-lo-to-ns-lo"}, {Name: "no-splice"},
	{Name: "ipv4-only", Char: '4'}, {Name: "ipv6-only", Char: '6'},
	{Name: "tcp-ports", Char: 't', Arg: getopt.Required}, {Name: "udp-ports", Char: 'u', Arg: getopt.Required},
	{Name: "tcp-ns", Char: 'T', Arg: getopt.Required}, {Name: "udp-ns", Char: 'U', Arg: getopt.Required},
	{Name: "userns", Arg: getopt.Required}, {Name: "netns", Arg: getopt.Required}, {Name: "netns-only"}, {Name: "no-netns-quit"},
	{Name: "config-net"}, {Name: "no-copy-routes"}, {Name: "no-copy-addrs"}, {Name: "ns-mac-addr", Arg: getopt.Required},
	{Name: "hostname", Char: 'H', Arg: getopt.Required}, {Name: "fqdn", Arg: getopt.Required},
	{Name: "dhcp-dns"}, {Name: "no-dhcp-dns"}, {Name: "dhcp-search"}, {Name: "no-dhcp-search"},
	{Name: "control", Char: 'c', Arg: getopt.Required},
}

// Parse parses a command line. program is argv[0], which error texts begin with; ephemeral is the range, first and last, from which
// the kernel chooses ports.
func Parse(program string, args []string, ephemeral [2]uint16) (*Options, error) {
	found, operands, err := getopt.Parse(program, optionTable, getopt.Strict, args)
	o := &Options{MTU: DefaultMTU, LogSize: defaultLogSize}
	// A TCP socket that listens is a server even if the kernel chose its port. An ephemeral UDP port belongs most likely to a
	// client, so "auto" ignores it. For the same reason it ignores ephemeral ports of the host (-T, -U), whose well-known services
	// have fixed ports.
	o.TCP.Ephemeral = true
	p := parser{o: o, ephemeral: ephemeral}
	for _, f := range found {
		switch f.Key {
		case "help":
			o.Help = true
			return o, nil
		case "version":
			o.Version = true
			return o, nil
		}
		if err := p.set(f.Key, f.Value); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, &UnknownOption{err}
	}
	if err := p.setTarget(operands); err != nil {
		return nil, err
	}
	return o, p.check()
}

// UnknownOption is the error for an unknown option or a missing value. Its text is that of getopt; the usage is printed after it.
type UnknownOption struct{ Err error }

func (e *UnknownOption) Error() string { return e.Err.Error() }
func (e *UnknownOption) Unwrap() error { return e.Err }

type parser struct {
	o         *Options
	ephemeral [2]uint16
	netnsOnly bool
}

// set stores the value of one option.
func (p *parser) set(key, value string) (err error) {
	o := p.o
	if flag := p.flag(key); flag != nil {
		*flag = true
		return nil
	}
	switch key {
	case "log-file":
		o.LogFile = value
	case "log-size":
		o.LogSize, err = strconv.ParseInt(value, 10, 64)
		if err != nil || o.LogSize < minLogSize {
			return fmt.Errorf("Invalid --log-size: %s", value)
		}
	case "pcap":
		o.PCAP = value
	case "pid":
		o.PIDFile = value
	case "hostname":
		o.Hostname = value
	case "fqdn":
		o.FQDN = value
	case "control":
		o.ControlSocket = value
	case "userns":
		o.UserNS = value
	case "netns":
		o.NetNS = value
		if !strings.Contains(value, "/") {
			o.NetNS = filepath.Join("/run/netns", value)
		}
	case "tcp-ports", "udp-ports", "tcp-ns", "udp-ns":
		return p.setPorts(key, value)
	case "no-dhcp-dns":
		o.DHCPDNS = false
	case "no-dhcp-search":
		o.DHCPSearch = false
	default:
		return p.setNetwork(key, value)
	}
	return nil
}

// setPorts stores the value of -t, -u, -T or -U.
func (p *parser) setPorts(key, value string) error {
	o := p.o
	spec := map[string]*PortSpec{"tcp-ports": &o.TCP, "udp-ports": &o.UDP, "tcp-ns": &o.TCPNS, "udp-ns": &o.UDPNS}[key]
	if strings.HasSuffix(key, "-ns") && strings.Contains(value, "/") {
		return fmt.Errorf("Listening address not allowed for --%s %s", key, value)
	}
	if err := spec.Add(value, p.ephemeral); err != nil {
		return fmt.Errorf("%w (--%s %s)", err, key, value)
	}
	return nil
}

// flag returns the field of an option without a value, or nil if key is not one.
func (p *parser) flag(key string) *bool {
	o := p.o
	return map[string]*bool{
		"debug": &o.Debug, "trace": &o.Debug, "quiet": &o.Quiet, "foreground": &o.Foreground, "stderr": &o.Stderr,
		"no-tcp": &o.NoTCP, "no-udp": &o.NoUDP, "no-icmp": &o.NoICMP, "no-dhcp": &o.NoDHCP, "no-dhcpv6": &o.NoDHCPv6, "no-ra": &o.NoRA,
		"no-ndp": &o.NoNDP, "dhcp-dns": &o.DHCPDNS, "dhcp-search": &o.DHCPSearch,
		"no-map-gw": &o.NoMapLoopback, "host-lo-to-ns-lo": &o.HostLoToNSLo, "no-splice": &o.NoSplice,
		"ipv4-only": &o.IPv6Off, "ipv6-only": &o.IPv4Off, "netns-only": &p.netnsOnly, "no-netns-quit": &o.NoNetNSQuit, "config-net": &o.ConfigNet,
		"no-copy-routes": &o.NoCopyRoutes, "no-copy-addrs": &o.NoCopyAddrs,
	}[key]
}

// setTarget parses the operands: a single number is a PID, everything else a command.
func (p *parser) setTarget(operands []string) error {
	o := p.o
	if len(operands) == 1 && o.NetNS == "" {
		if pid, err := strconv.Atoi(operands[0]); err == nil {
			if pid < 1 {
				return fmt.Errorf("Invalid PID: %s", operands[0])
			}
			if o.UserNS != "" { // then the PID names the network namespace only
				o.NetNS = fmt.Sprintf("/proc/%d/ns/net", pid)
				return nil
			}
			o.PID = pid
			return nil
		}
	}
	switch {
	case o.NetNS != "" && len(operands) > 0:
		return errors.New("Both --netns and PID or command given")
	case o.UserNS != "" && p.netnsOnly:
		return errors.New("Both --userns and --netns-only given")
	case o.UserNS != "" && o.NetNS == "":
		return errors.New("--userns requires --netns or PID")
	}
	o.Command = operands
	return nil
}

// IsCommand reports whether pasta runs a command in new namespaces.
func (o *Options) IsCommand() bool { return o.PID == 0 && o.NetNS == "" }

// check finds contradictions between options, and sets the ports that were not given to "auto".
func (p *parser) check() error {
	o := p.o
	switch {
	case o.IPv4Off && o.IPv6Off:
		return errors.New("Options ipv4-only and ipv6-only are mutually exclusive")
	case o.LogFile != "" && o.Stderr:
		return errors.New("Can't log to both file and stderr")
	case o.Quiet && o.Debug:
		return errors.New("Either --debug or --quiet, but not both")
	}
	if o.NoTCP && len(o.TCP.Rules)+len(o.TCPNS.Rules) > 0 {
		return errors.New("Can't add TCP forwarding rule, TCP not enabled")
	}
	if o.NoUDP && len(o.UDP.Rules)+len(o.UDPNS.Rules) > 0 {
		return errors.New("Can't add UDP forwarding rule, UDP not enabled")
	}
	for _, spec := range []*PortSpec{&o.TCP, &o.UDP, &o.TCPNS, &o.UDPNS} {
		for _, r := range spec.Rules {
			switch {
			case r.Addr.Is4() && o.IPv4Off:
				return errors.New("IPv4 forward, but IPv4 not enabled")
			case r.Addr.Is6() && o.IPv6Off:
				return errors.New("IPv6 forward, but IPv6 not enabled")
			}
		}
	}
	for _, a := range o.Addrs {
		if a.Addr.Is4() && a.Bits != 0 && o.Netmask != 0 {
			return errors.New("Redundant prefix length specification")
		}
	}
	if o.NetNS != "" {
		if _, err := os.Stat(o.NetNS); err != nil {
			return fmt.Errorf("Couldn't open network namespace %s: %w", o.NetNS, err)
		}
	}
	for _, list := range []struct {
		name  string
		addrs []netip.Addr
	}{{"dns-forward", o.DNSForward}, {"dns-host", o.DNSHost}, {"map-host-loopback", o.MapLoopback}, {"map-guest-addr", o.MapGuest}, {"gateway", o.Gateways}} {
		if len(list.addrs) == 2 && list.addrs[0].Is4() == list.addrs[1].Is4() {
			return fmt.Errorf("--%s takes one address of each family", list.name)
		}
	}
	for _, s := range []*PortSpec{&o.TCP, &o.UDP, &o.TCPNS, &o.UDPNS} {
		if s.Given {
			continue
		}
		if err := s.Add("auto", p.ephemeral); err != nil {
			return err
		}
	}
	return nil
}
