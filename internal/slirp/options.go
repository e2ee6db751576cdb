package slirp

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"rootlessnet/internal/getopt"
)

// Limits and defaults of the options.
const (
	defaultMTU = 1500
	maxMTU     = 65521 // of a TAP device: 65535 bytes less the Ethernet header
	// Prefix lengths of --cidr: it must have room for guestNumber.
	minBits, maxBits = 1, 25
	// maxSocketPath is the size of sun_path (unix(7)).
	maxSocketPath = 108
)

// Host numbers in the subnet, as with the original.
const (
	gatewayNumber = 2
	dnsNumber     = 3
	guestNumber   = 100
)

// NetNSType is the way in which the command line names the network namespace.
type NetNSType string

// The values of --netns-type, and ByBESS for --target-type=bess.
const (
	ByPID   NetNSType = "pid"
	ByPath  NetNSType = "path"
	ByTAPFD NetNSType = "tapfd" // an open TAP device
	ByBESS  NetNSType = "bess"  // a unix socket to which a virtual machine connects; each packet is one frame
)

// Options holds a valid command line.
type Options struct {
	Help, Version bool

	Configure bool
	ExitFD    int // -1 for none
	ReadyFD   int // -1 for none
	MTU       int
	IPv6      bool
	APISocket string
	CIDR      netip.Prefix
	MAC       net.HardwareAddr

	DisableHostLoopback bool
	DisableDNS          bool
	Sandbox             bool // --enable-sandbox or --enable-seccomp

	Type       NetNSType
	PID        int    // ByPID
	Path       string // ByPath, ByBESS
	TAPFD      int    // ByTAPFD
	UserNSPath string
	TAPName    string

	Outbound4, Outbound6 netip.Addr // the zero value for none

	// Warnings are for standard output, a line each.
	Warnings []string
}

// Gateway, DNS and Guest are the addresses within CIDR.
func (o *Options) Gateway() netip.Addr { return nth(o.CIDR, gatewayNumber) }

// DNS is the address of the name server.
func (o *Options) DNS() netip.Addr { return nth(o.CIDR, dnsNumber) }

// Guest is the address the TAP gets with Configure.
func (o *Options) Guest() netip.Addr { return nth(o.CIDR, guestNumber) }

func nth(p netip.Prefix, n byte) netip.Addr {
	b := p.Addr().As4()
	b[3] |= n // a prefix of at most 25 bits leaves the last seven to us
	return netip.AddrFrom4(b)
}

var optionTable = []getopt.Option{
	{Name: "configure", Char: 'c'},
	{Name: "exit-fd", Char: 'e', Arg: getopt.Required},
	{Name: "ready-fd", Char: 'r', Arg: getopt.Required},
	{Name: "mtu", Char: 'm', Arg: getopt.Required},
	{Name: "cidr", Arg: getopt.Required},
	{Name: "disable-host-loopback"},
	{Name: "no-host-loopback", Key: "deprecated-no-host-loopback"},
	{Name: "netns-type", Arg: getopt.Required},
	{Name: "userns-path", Arg: getopt.Required},
	{Name: "api-socket", Char: 'a', Arg: getopt.Required},
	{Name: "enable-ipv6", Char: '6'},
	{Name: "enable-sandbox"},
	{Name: "create-sandbox", Key: "deprecated-create-sandbox"},
	{Name: "enable-seccomp"},
	{Name: "help", Char: 'h'},
	{Name: "version", Char: 'v'},
	{Name: "outbound-addr", Arg: getopt.Required},
	{Name: "outbound-addr6", Arg: getopt.Required},
	{Name: "disable-dns"},
	{Name: "macaddress", Arg: getopt.Required},
	{Name: "target-type", Arg: getopt.Required},
}

// Interfaces finds an address of a network interface, for --outbound-addr; the fields are function fields for tests.
type Interfaces func(name string, v6 bool) (netip.Addr, error)

// Parse parses a command line. program is argv[0], which error texts begin with.
func Parse(program string, args []string, interfaces Interfaces) (*Options, error) {
	found, operands, err := getopt.Parse(program, optionTable, getopt.Permute, args)
	if err != nil {
		return nil, err
	}
	o := &Options{
		ExitFD: -1, ReadyFD: -1, MTU: defaultMTU, Type: ByPID,
		CIDR: netip.MustParsePrefix("10.0.2.0/24"),
	}
	target := "netns"
	for _, f := range found {
		switch f.Key {
		case "help":
			o.Help = true
			return o, nil
		case "version":
			o.Version = true
			return o, nil
		case "netns-type":
			o.Type = NetNSType(f.Value)
		case "target-type":
			target = f.Value
		default:
			if err := o.set(f, interfaces); err != nil {
				return nil, err
			}
		}
	}
	if len(o.MAC) > 0 && !o.Configure {
		return nil, errors.New("--macaddr cannot be specified when --configure or -c is not specified")
	}
	switch target {
	case "netns":
	case "bess":
		o.Type = ByBESS
	default:
		return nil, errors.New(`--target-type must be either "netns" or "bess"`)
	}
	return o, o.setTarget(operands)
}

// set stores the value of one option, and checks it as far as it does not depend on other options.
func (o *Options) set(f getopt.Found, interfaces Interfaces) (err error) {
	switch f.Key {
	case "configure":
		o.Configure = true
	case "exit-fd":
		o.ExitFD, err = descriptor("exit-fd", f.Value)
	case "ready-fd":
		o.ReadyFD, err = descriptor("ready-fd", f.Value)
	case "mtu":
		o.MTU, err = strconv.Atoi(f.Value)
		if err != nil || o.MTU < 1 || o.MTU > maxMTU {
			return fmt.Errorf("MTU must be a positive integer (< %d)", maxMTU+1)
		}
	case "cidr":
		o.CIDR, err = parseCIDR(f.Value)
	case "deprecated-no-host-loopback":
		o.warn("--no-host-loopback is deprecated, use --disable-host-loopback")
		o.DisableHostLoopback = true
	case "disable-host-loopback":
		o.DisableHostLoopback = true
	case "userns-path":
		if _, err := os.Stat(f.Value); err != nil {
			return fmt.Errorf("userns path doesn't exist: %s", f.Value)
		}
		o.UserNSPath = f.Value
	case "api-socket":
		if len(f.Value) >= maxSocketPath {
			return fmt.Errorf("the API socket path is too long (>= %d): %s", maxSocketPath, f.Value)
		}
		o.APISocket = f.Value
	case "enable-ipv6":
		o.IPv6 = true
	case "deprecated-create-sandbox":
		o.warn("--create-sandbox is deprecated, use --enable-sandbox")
		o.Sandbox = true
	case "enable-sandbox", "enable-seccomp":
		o.Sandbox = true
	case "outbound-addr":
		o.Outbound4, err = outbound(f.Value, false, interfaces)
	case "outbound-addr6":
		o.Outbound6, err = outbound(f.Value, true, interfaces)
	case "disable-dns":
		o.DisableDNS = true
	case "macaddress":
		o.MAC, err = net.ParseMAC(f.Value)
		if err != nil || len(o.MAC) != 6 || o.MAC[0]&1 != 0 {
			return fmt.Errorf("invalid MAC address %q: six bytes in hexadecimal, the first of them even", f.Value)
		}
	}
	return err
}

func (o *Options) warn(text string) { o.Warnings = append(o.Warnings, "WARNING: "+text) }

// setTarget parses the operands: the namespace and the name of the TAP device.
func (o *Options) setTarget(operands []string) error {
	if len(operands) > 2 {
		o.warn("too many arguments")
	}
	if len(operands) == 0 {
		return errors.New("a PID, path or descriptor of the network namespace is needed")
	}
	switch o.Type {
	case ByPath, ByPID:
		if len(operands) < 2 || operands[1] == "" {
			return errors.New("the name of the TAP device is needed")
		}
		o.TAPName = operands[1]
	}
	switch what := operands[0]; o.Type {
	case ByPID:
		pid, err := strconv.Atoi(what)
		if err != nil || pid < 1 {
			return errors.New("PID must be a positive integer")
		}
		o.PID = pid
	case ByPath:
		if _, err := os.Stat(what); err != nil {
			return fmt.Errorf("existing path expected when --netns-type=path: %w", unwrapPath(err))
		}
		o.Path = what
	case ByTAPFD:
		fd, err := descriptor("tapfd", what)
		if err != nil {
			return err
		}
		o.TAPFD = fd
	case ByBESS:
		if len(what) >= maxSocketPath {
			return fmt.Errorf("the socket path is too long (>= %d): %s", maxSocketPath, what)
		}
		o.Path = what
	default:
		return fmt.Errorf("--netns-type must be \"path\", \"pid\" or \"tapfd\", not %q", o.Type)
	}
	return nil
}

func unwrapPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func descriptor(name, value string) (int, error) {
	fd, err := strconv.ParseInt(value, 10, 64)
	if err != nil || fd < 0 || fd > math.MaxInt32 {
		return -1, fmt.Errorf("%s must be a non-negative integer", name)
	}
	return int(fd), nil
}

// parseCIDR parses the value of --cidr. Callers search the error for "invalid CIDR" and "prefix length needs to be".
func parseCIDR(s string) (netip.Prefix, error) {
	addr, length, ok := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	if !ok || err != nil || !a.Is4() {
		return netip.Prefix{}, fmt.Errorf("invalid CIDR: %q", s)
	}
	bits, err := strconv.ParseUint(length, 10, 31)
	if err != nil || bits < minBits || bits > maxBits {
		return netip.Prefix{}, fmt.Errorf("invalid CIDR: %q: prefix length needs to be %d-%d", s, minBits, maxBits)
	}
	p := netip.PrefixFrom(a, int(bits))
	if p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("invalid CIDR: %q: CIDR needs to be a network address like %s, not like %s", s, p.Masked(), s)
	}
	return p, nil
}

// outbound parses the value of --outbound-addr: an address, or the name of an interface with an address.
func outbound(value string, v6 bool, interfaces Interfaces) (netip.Addr, error) {
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	if a, err := netip.ParseAddr(value); err == nil {
		if a.Is6() != v6 || a.Is4In6() || a.Zone() != "" {
			return a, fmt.Errorf("outbound address %s is not an %s address", value, family)
		}
		return a, nil
	}
	a, err := interfaces(value, v6)
	if err != nil {
		return a, fmt.Errorf("outbound address %q is neither an %s address nor an interface with one: %w", value, family, err)
	}
	return a, nil
}

// InterfaceAddress implements Interfaces with the interfaces of the host.
func InterfaceAddress(name string, v6 bool) (netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() == v6 && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("interface %s has no such address", name)
}
