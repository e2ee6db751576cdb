package userns

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
)

// Network says which network namespace the command gets.
type Network string

// Values of Network; the zero value is NetworkNew.
const (
	NetworkNew  Network = "new"  // its own, with lo and the uplink
	NetworkHost Network = "host" // the caller's
	NetworkNone Network = "none" // its own, with lo only
	NetworkJoin Network = "join" // that of Config.JoinPID
	// NetworkAttach is that of Config.Target, with nothing else: no command, no file of ours, no other namespace.
	NetworkAttach Network = "attach"
)

// IDMap says who the command is inside its user namespace.
type IDMap string

// Values of IDMap; the zero value is IDMapRoot.
const (
	IDMapRoot   IDMap = "root"    // the caller's uid and gid are 0 inside
	IDMapKeepID IDMap = "keep-id" // the caller's uid and gid are the same inside; the command holds no capability
	// IDMapAuto is IDMapRoot, and the subordinate ranges follow from 1 on, by newuidmap and newgidmap. Where there are
	// no ranges or no tools it is IDMapRoot, with a warning.
	IDMapAuto IDMap = "auto"
)

// Kinds of link devices, as in Link.Kind and LinkResult. They are the names that package tap uses.
const (
	KindAuto     = "auto"      // the first of the following that works
	KindTAP      = "tap"       // TAP with virtio-net headers and offloads
	KindTAPPlain = "tap-plain" // TAP without them
	KindPacket   = "packet"    // veth pair, far end read by AF_PACKET in a second network namespace
)

// Link describes the uplink of a NetworkNew or NetworkAttach sandbox.
type Link struct {
	Kind       string           // one of the Kind constants; "" is KindAuto
	Name       string           // interface name; "" is "eth0"
	MTU        int              // bytes, without the Ethernet header; 0 is 65520
	MAC        net.HardwareAddr // nil: the kernel's choice
	Addrs      []netip.Prefix   // addresses with their on-link prefix; may be empty
	Gateways   []netip.Addr     // next hops of default routes, at most one a family
	GatewayMAC net.HardwareAddr // when set, the gateways get permanent neighbour entries
	// Routes are set up instead of the default routes; nil means those. One that the kernel refuses is a warning.
	Routes []Route
	// Bare leaves the interface as it is made: down, without addresses, and lo as it is. NetworkAttach only.
	Bare bool
}

// Route is one route by the uplink.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // the zero value: on the link
	Source  netip.Addr // preferred source address; may be zero
	Metric  int
	MTU     int
}

// Files is what the sandbox sees as its name-service configuration. nil leaves a file as it is on the host.
type Files struct {
	ResolvConf []byte // text of /etc/resolv.conf
	Hosts      []byte // text of /etc/hosts
	Hostname   string // "" leaves it; UpdateFiles ignores it
}

// Config describes a sandbox. The zero value is a new network with an uplink of unaddressed eth0, and uid 0 inside.
type Config struct {
	Network      Network
	IDMap        IDMap // ignored by NetworkJoin, where the map is the target's
	PIDNamespace bool  // its own pid namespace, with its own /proc
	// JoinPID is the init pid of the sandbox that NetworkJoin joins: its user and network namespaces, and copies of its
	// mount and UTS namespaces.
	JoinPID int
	// Target is what NetworkAttach attaches to. It stays the caller's, and is not needed after Start.
	Target *Target
	Link   Link
	Files  Files
	// Hidden directories are covered by empty private ones. Absolute; those that do not exist are skipped.
	Hidden []string
	Logger *slog.Logger // nil discards
}

// Command is what Run starts.
type Command struct {
	Argv []string // Argv[0] is looked up in the PATH of Env unless it has a slash
	Env  []string // nil: the caller's
	Dir  string   // "": the caller's working directory
	// nil is /dev/null. They stay the caller's to close.
	Stdin, Stdout, Stderr *os.File
}

// LinkResult says what the link device that was opened can do, in both directions, and why it is this one.
type LinkResult struct {
	CSum bool // partial checksums
	TSO  bool // TCP frames of up to 64 KiB
	USO  bool // UDP_L4 frames
	// MAC is the address of the interface, which may have been there with one of its own.
	MAC net.HardwareAddr
	// Refused names the kinds that were tried first, and why each did not work. Empty for the first choice.
	Refused []Refusal
}

// Refusal is one kind of link that could not be had.
type Refusal struct {
	Kind   string
	Reason string
}

const (
	defaultLinkName = "eth0"
	defaultMTU      = 65520
	// minMTU is IPv4's (RFC 791); IPv6 needs 1280 and is left out by the kernel below that.
	minMTU = 68
	// maxMTU keeps a frame with its Ethernet header within 65535 bytes (drivers/net/tun.c, MAX_MTU - ETH_HLEN).
	maxMTU = 65521
	// maxIfName is IFNAMSIZ without the final NUL.
	maxIfName = 15
	// maxHostname is __NEW_UTS_LEN.
	maxHostname = 64
)

// withDefaults fills what is zero and refuses what cannot work.
func (c Config) withDefaults() (Config, error) {
	if c.Network == "" {
		c.Network = NetworkNew
	}
	if c.IDMap == "" {
		c.IDMap = IDMapRoot
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	bad := func(format string, args ...any) (Config, error) {
		return c, &Error{Op: "configuration", Err: fmt.Errorf(format, args...)}
	}
	switch c.Network {
	case NetworkNew, NetworkHost, NetworkNone:
	case NetworkJoin:
		if c.JoinPID <= 0 {
			return bad("network %q needs the pid of a sandbox", c.Network)
		}
	case NetworkAttach:
		if c.Target == nil {
			return bad("network %q needs a target", c.Network)
		}
	default:
		return bad("unknown network %q", c.Network)
	}
	switch c.IDMap {
	case IDMapRoot, IDMapKeepID, IDMapAuto:
	default:
		return bad("unknown id map %q", c.IDMap)
	}
	if len(c.Files.Hostname) > maxHostname {
		return bad("host name longer than %d bytes", maxHostname)
	}
	for _, d := range c.Hidden {
		if !filepath.IsAbs(d) {
			return bad("hidden directory %q is not absolute", d)
		}
	}
	if c.Network != NetworkNew && c.Network != NetworkAttach {
		return c, nil
	}
	var err error
	if c.Link, err = c.Link.withDefaults(); err != nil {
		return c, &Error{Op: "configuration", Err: err}
	}
	return c, nil
}

func (l Link) withDefaults() (Link, error) {
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
