package plan

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
)

// Names of the network modes (Config.Network). The fourth mode is ContainerPrefix followed by the name or id of a
// running sandbox.
const (
	NetworkBridge   = "bridge"
	NetworkHost     = "host"
	NetworkNone     = "none"
	ContainerPrefix = "container:"
)

// Names of the id mappings (Config.UserNS).
const (
	UserNSRoot   = "root"    // the caller is uid 0 inside, nobody else exists
	UserNSKeepID = "keep-id" // the caller keeps its own uid and gid, without capabilities
	UserNSAuto   = "auto"    // as root, and the ranges of /etc/subuid and /etc/subgid become uid and gid 1 and up
)

// Values of Config.Datapath.
const (
	DatapathAuto   = "auto"   // the kernel's road where everything it needs is there, else the stack
	DatapathStack  = "stack"  // TCP ends in the userspace stack
	DatapathSplice = "splice" // TCP ends in sockets of the sandbox's own kernel namespace and is spliced; an error where it cannot be
)

// Names of the link kinds (Config.Link); but for LinkAuto they are those of package tap.
const (
	LinkAuto     = "auto"
	LinkTAP      = "tap"
	LinkTAPPlain = "tap-plain"
	LinkPacket   = "packet"
)

// Limits and defaults of a sandbox's network.
const (
	// DefaultMTU keeps an IP packet of the guest and its Ethernet header under 64 KiB; other rootless helpers use
	// the same value, so images and scripts are used to it.
	DefaultMTU = 65520
	// MinMTU is the smallest MTU an IPv4 host must have (RFC 791 section 3.2).
	MinMTU = 68
	// MinMTU6 is the smallest MTU a link that carries IPv6 may have (RFC 8200 section 5).
	MinMTU6 = 1280
	// MaxMTU is the largest a TAP takes: 65535 bytes less the Ethernet header (drivers/net/tun.c, MAX_MTU).
	MaxMTU = 65521
)

// HostGatewayName is the address in Config.ExtraHosts that stands for the gateway's.
const HostGatewayName = "host-gateway"

// HostLoopback names the services on the host's loopback (127.0.0.1 and ::1) that the sandbox may reach, on the
// gateway's address. The zero value names none.
type HostLoopback struct {
	All   bool
	Ports []uint16 // never 0; TCP and UDP alike
}

// Config describes one sandbox: a command and its network. Its zero value, but for Argv, is what rootless-run does
// when no flag is given. A Config is not changed by Run, and may be used again once Run has returned.
type Config struct {
	// Argv is the command. Argv[0] without a slash is looked up in the PATH of Env. Required.
	Argv []string
	// Env is the command's environment as "NAME=value"; nil means that of this process.
	Env []string
	// Dir is the command's working directory; empty means that of this process.
	Dir string
	// Stdin, Stdout and Stderr are given to the command as they are (no copying: a terminal stays a terminal); nil
	// means /dev/null.
	Stdin, Stdout, Stderr *os.File
	// LogOutput sends a Stdout and a Stderr that are nil to the file output.log in the sandbox's state directory, which keeps
	// the last few megabytes.
	LogOutput bool

	// Network is NetworkBridge, NetworkHost, NetworkNone or ContainerPrefix+NAME; empty means NetworkBridge.
	Network string
	// Name is how the sandbox is called; empty means its short id. It is unique among the live ones of a user.
	Name string
	// Hostname is the host name inside; empty means the short id (host mode: the host's).
	Hostname string

	// Publish lists ports in the grammar of docker run -p (ParsePortSpec). All are bound before the command starts.
	Publish []string
	// PublishAll follows what listens inside, and publishes it on the same port where that is free.
	PublishAll bool
	// Listeners are bound sockets (TCP ones listening), such as those a service manager passes in: one whose local
	// address and port are those of a published port is used in place of a new one. Run takes them over and closes
	// them.
	Listeners []*os.File

	// DNS lists the resolvers that answer instead of those of the host's resolv.conf.
	DNS []netip.Addr
	// DNSSearch and DNSOptions replace the search and options lines of the host's resolv.conf; a sole "." in
	// DNSSearch means no search list.
	DNSSearch, DNSOptions []string
	// ExtraHosts are "name:address" or "name=address"; the address HostGatewayName stands for the gateway's.
	ExtraHosts []string

	// Subnet and Subnet6 are the sandbox's networks. The zero value means the first of our candidates (10.0.2.0/24
	// and up; fd52:6e65:7400::/64 and up) that collides with no route or address of the host.
	Subnet, Subnet6 netip.Prefix
	// IP and IP6 are the guest's addresses; the zero value means the 100th (hexadecimal for IPv6) of the subnet.
	IP, IP6 netip.Addr
	// MAC is the guest's hardware address; nil means 02:42 and the four bytes of IP.
	MAC net.HardwareAddr
	// MTU in bytes, without the Ethernet header; 0 means DefaultMTU. Below MinMTU6 there is no IPv6.
	MTU int
	// DisableIPv6 leaves IPv6 out.
	DisableIPv6 bool
	// HostLoopback names what of the host's loopback the sandbox may reach.
	HostLoopback HostLoopback

	// Plan is the network in full, in place of Subnet, IP, their like and DisableIPv6; nil: it is made of those.
	Plan *NetworkPlan
	// IfName is what the uplink is called inside; empty means "eth0". Where a persistent TAP of that name is there
	// already, Attach uses it.
	IfName string
	// Configure has Attach bring lo and the uplink up, with addresses and routes. Otherwise it makes the uplink and
	// leaves it down; DHCP and router advertisements offer the addresses to whoever asks. Run always configures.
	Configure bool
	// OutboundAddr and OutboundAddr6 are the host's addresses that connections and datagrams leave from; the zero values
	// leave it to the host's routes.
	OutboundAddr, OutboundAddr6 netip.Addr
	// OutboundIf and OutboundIf6 are the host's interfaces that connections and datagrams leave by, but for those to its
	// loopback; empty leaves it to the host's routes.
	OutboundIf, OutboundIf6 string
	// AllowMetadata opens the clouds' metadata services (169.254.169.254 and their like), which hand out the host's
	// credentials to whoever asks.
	AllowMetadata bool
	// APISocket is one more path at which the control socket listens; empty means none. A socket that is there is
	// replaced, and the path is removed at the end.
	APISocket string

	// UserNS is UserNSRoot, UserNSKeepID or UserNSAuto; empty means UserNSRoot.
	UserNS string
	// PIDNamespace gives the command a pid namespace of its own.
	PIDNamespace bool
	// Link forces a link kind; empty means LinkAuto, the first that works.
	Link string
	// Datapath is how TCP crosses: DatapathAuto, DatapathStack or DatapathSplice; empty means DatapathAuto.
	Datapath string
	// PCAP is a file to which every frame is written in pcap format; empty means none. Bridge mode only.
	PCAP string

	// Confine is for a process that does nothing else: it takes from it what a data plane does not need (every
	// capability, the means to gain privilege by execve, being read by other processes of the user, and system calls such as
	// execve itself), which cannot be undone, and sizes its Go scheduler for the load. No other sandbox can be made in it.
	Confine bool

	// RuntimeDir is where sandboxes of this user are found; empty means $XDG_RUNTIME_DIR/rootless-run.
	RuntimeDir string
	// Logger receives what is worth knowing; nil means nothing is said. Warnings of the kind docker run prints
	// are at level Warn with the text alone.
	Logger *slog.Logger

	// Signals, if set, are sent to the command as they come. Before it has started, one that asks a program to end ends
	// Run instead, and the others are kept for the command. Once it has exited while others are still in its network, one
	// that asks a program to end ends the sandbox. What a terminal sends reaches a command that has started without help,
	// being in the caller's process group: it must not come here.
	Signals <-chan os.Signal

	// OnStart, if set, is called once, when the command has started.
	OnStart func(Started)
	// OnPublish, if set, is called for each port that PublishAll opens later; not concurrently.
	OnPublish func(PortMapping)
}

// Started tells about a sandbox whose command has just started.
type Started struct {
	ID   string // 64 hexadecimal digits
	Name string
	PID  int // of the command, in the caller's pid namespace; 0 if unknown
}

// UsageError is a Config that contradicts itself or holds a value that cannot be used. Its text is that of docker
// run where Docker has one.
type UsageError struct {
	Field string // of Config
	Err   error
}

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }
