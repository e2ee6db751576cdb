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
	UserNSKeepID = "keep-id" // the caller keeps its own uid and gid, without capabilities
	UserNSRoot   = "root"    // the caller is uid 0 inside and may administer the network there; no other id is mapped
	UserNSAuto   = "auto"    // as root, and the ranges of /etc/subuid and /etc/subgid become uid and gid 1 and up

	// DefaultUserNS leaves everything but the network as it is for the command, which sees the host's files: as uid 0 of another
	// user namespace, ssh, git, PostgreSQL, nginx and package managers look for other files or refuse to run.
	DefaultUserNS = UserNSKeepID
)

// Values of Config.Datapath.
const (
	DatapathAuto   = "auto"   // the splice path if the kernel and the namespace allow it, otherwise the stack path
	DatapathStack  = "stack"  // the stack path: TCP ends in the userspace stack
	DatapathSplice = "splice" // the splice path: TCP ends in kernel sockets inside the namespace, joined by splice(2); an error if that is impossible
)

// Names of the link kinds (Config.Link). All but LinkAuto are those of package tap.
const (
	LinkAuto     = "auto"
	LinkTAP      = "tap"
	LinkTAPPlain = "tap-plain"
	LinkPacket   = "packet"
)

// Limits and defaults of a sandbox's network.
const (
	// DefaultTCPBuffers is enough for 32 connections at their fastest on the stack path; a thousand slow readers take about as
	// much. MinTCPBuffers lets a few be fast.
	DefaultTCPBuffers = 64 << 20
	MinTCPBuffers     = 1 << 20
	// DefaultMTU keeps an IP packet of the guest and its Ethernet header under 64 KiB. Images and scripts expect it, because
	// other rootless helpers use the same value.
	DefaultMTU = 65520
	// MinMTU is the smallest MTU an IPv4 host must have (RFC 791 section 3.2).
	MinMTU = 68
	// MinMTU6 is the smallest MTU a link that carries IPv6 may have (RFC 8200 section 5).
	MinMTU6 = 1280
	// MaxMTU is the largest a TAP takes: 65535 bytes less the Ethernet header (drivers/net/tun.c, MAX_MTU).
	MaxMTU = 65521
)

// HostGatewayName in Config.ExtraHosts is replaced by the gateway's address.
const HostGatewayName = "host-gateway"

// HostLoopback names the services on the host's loopback (127.0.0.1 and ::1) that the sandbox may reach, on the
// gateway's address. The zero value names none. The other ports of that address lead to the host's own address on its network, if it
// has one; with All there are no others.
type HostLoopback struct {
	All   bool
	Ports []uint16 // never 0; TCP and UDP alike
}

// Config describes one sandbox: a command and its network. With nothing set but Argv it is what rootless-run does without any
// flag. Run does not change a Config; it may be used again once Run has returned.
type Config struct {
	// Argv is the command. Argv[0] without a slash is looked up in the PATH of Env. Required.
	Argv []string
	// Env is the command's environment as "NAME=value"; nil means the environment of this process.
	Env []string
	// Dir is the command's working directory; empty means the working directory of this process.
	Dir string
	// Stdin, Stdout and Stderr are passed to the command as file descriptors, without copying, so that a terminal stays a
	// terminal; nil means /dev/null.
	Stdin, Stdout, Stderr *os.File
	// LogOutput writes Stdout and Stderr, where they are nil, to the file output.frames in the sandbox's state directory. The
	// file keeps the last few megabytes.
	LogOutput bool
	// KeepEnded keeps the sandbox's state directory, with its exit code and its output, when a command that was started has ended
	// (rootless-net ps -a, logs, rm). The number, age and size of what is kept are bounded.
	KeepEnded bool
	// TTY gives the command a pseudo terminal as its standard streams and its controlling terminal, in a session of its own. What
	// is read from Stdin is typed into it, and what the command prints goes to Stdout, or to the log with LogOutput; Stderr is not
	// used. A Stdin that is a terminal is in raw mode meanwhile, and its window size is the command's.
	TTY bool
	// OpenStdin is for a nil Stdin: the command's standard input is then a pipe that stays empty and open, instead of /dev/null.
	OpenStdin bool

	// User is the command's user inside as docker run -u takes it, name|uid[:group|gid]; names are those of /etc/passwd and
	// /etc/group. Empty means the user that UserNS gives. If UserNS is empty, it is chosen by the user: UserNSRoot for uid 0,
	// UserNSKeepID for the caller's own, and UserNSAuto for any other. An id that is not mapped inside is an error.
	User string
	// CapAdd are capabilities that the command has whatever its uid is, and that its programs inherit (ambient, capabilities(7)),
	// over the sandbox's own namespaces: NET_ADMIN, NET_RAW and NET_BIND_SERVICE, with or without the prefix CAP_. Not in host mode.
	CapAdd []string
	// Sysctls are kernel parameters of the network namespace as "name=value"; the names begin with "net.". They are set after
	// the uplink has been configured. Only in bridge and none mode.
	Sysctls []string
	// ReadOnly makes every file system read-only for the command, except /proc, /sys, /dev and what is mounted below them. It
	// needs Linux 5.12. A command with uid 0 inside is root of its mount namespace and can undo it.
	ReadOnly bool
	// StopSignal is the signal, by name or number, that the command gets when Signals delivers SIGTERM, which is what rootless-net
	// stop and service managers send; empty means SIGTERM itself.
	StopSignal string
	// Labels are for the caller's own use; they are in the sandbox's state record and in the answers of its control socket.
	Labels map[string]string
	// IDFile is the path of a file to create with the sandbox's id before the command starts; empty means none. It must not exist.
	// It is removed again if the command cannot be started.
	IDFile string
	// JobControl is for a process that is a job of a shell on behalf of this command: when the command has a process group of its
	// own, as an interactive shell has, and stops, the caller's process group is stopped too. When it is continued in the foreground, so
	// is the command, which gets the terminal back. SIGTSTP on Signals stops the caller itself before the command has started, and
	// while that is in its process group.
	JobControl bool

	// Network is NetworkBridge, NetworkHost, NetworkNone or ContainerPrefix+NAME; empty means NetworkBridge.
	Network string
	// Name is the sandbox's name; empty means its short id. It is unique among the user's running sandboxes.
	Name string
	// Hostname is the host name inside; empty means the short id, and in host mode the host's name.
	Hostname string

	// Publish lists ports in the grammar of docker run -p (ParsePortSpec). All are bound before the command starts.
	Publish []string
	// PublishAll publishes every port that a server inside listens on, while it does: on the same port of the host, or on
	// another one if that is taken.
	PublishAll bool
	// Listeners are bound sockets, such as a service manager passes; TCP sockets must be listening. A published port with
	// the address and port of one of them uses that socket instead of a new one. A socket on [::] without IPV6_V6ONLY is one on
	// 0.0.0.0 as well. Descriptors that are neither TCP nor UDP sockets are not used. Run takes all over and closes them.
	Listeners []*os.File

	// DNS lists the upstream DNS servers, instead of those of the host's resolv.conf.
	DNS []netip.Addr
	// DNSSearch and DNSOptions replace the search and options lines of the host's resolv.conf; a single "." in
	// DNSSearch means no search list.
	DNSSearch, DNSOptions []string
	// ExtraHosts are "name:address" or "name=address"; the address HostGatewayName is replaced by
	// the gateway's.
	ExtraHosts []string

	// Subnet and Subnet6 are the sandbox's networks. The zero value means the first candidate (10.0.2.0/24 and
	// up; fd52:6e65:7400::/64 and up) that collides with no route or address of the host.
	Subnet, Subnet6 netip.Prefix
	// IP and IP6 are the guest's addresses; the zero value means host number 100 (IPv6: hexadecimal 100) of the subnet.
	IP, IP6 netip.Addr
	// MAC is the guest's hardware address; nil means 02:42 and the four bytes of IP.
	MAC net.HardwareAddr
	// MTU is in bytes, without the Ethernet header; 0 means DefaultMTU. Below MinMTU6 IPv6 is off.
	MTU int
	// DisableIPv6 turns IPv6 off.
	DisableIPv6 bool
	// HostLoopback names the services on the host's loopback that the sandbox may reach.
	HostLoopback HostLoopback

	// Plan is the network in full, instead of Subnet, Subnet6, IP, IP6 and DisableIPv6; nil means that these describe it.
	Plan *NetworkPlan
	// IfName is the name of the uplink inside; empty means "eth0". If a persistent TAP of that name exists in the namespace,
	// Attach uses it.
	IfName string
	// Configure has Attach bring lo and the uplink up, with addresses and routes. Otherwise Attach creates the uplink and
	// leaves it down; the gateway then assigns the addresses by DHCP and router advertisements. Run always configures.
	Configure bool
	// OutboundAddr and OutboundAddr6 are the source addresses on the host of outbound connections and datagrams; the zero
	// values leave the choice to the host's routes.
	OutboundAddr, OutboundAddr6 netip.Addr
	// OutboundIf and OutboundIf6 are the host's interfaces for outbound connections and datagrams, except those to its
	// loopback; empty leaves the choice to the host's routes.
	OutboundIf, OutboundIf6 string
	// UDPFullCone lets datagrams of every remote in to a port from which the sandbox has sent one, as far as the sandbox might
	// send there (endpoint-independent filtering, RFC 4787 section 5). Otherwise only the addresses that it has sent to
	// may answer, from any of their ports.
	UDPFullCone bool
	// AllowMetadata lets the sandbox reach the metadata services of clouds (169.254.169.254 and similar addresses), which
	// give the host's credentials to every client.
	AllowMetadata bool
	// APISocket is a second path at which the control socket listens; empty means none. An existing socket at that path is
	// replaced, and the path is removed at the end.
	APISocket string

	// UserNS is UserNSKeepID, UserNSRoot or UserNSAuto; empty means DefaultUserNS. Attach ignores it.
	UserNS string
	// PIDNamespace gives the command a pid namespace of its own.
	PIDNamespace bool
	// Link forces a link kind; empty means LinkAuto, the first that works.
	Link string
	// Datapath is the path of TCP connections: DatapathAuto, DatapathStack or DatapathSplice; empty means DatapathAuto.
	Datapath string
	// TCPBuffers bounds, in bytes, the memory for data of TCP connections on the stack path that one side does not read; 0 means
	// DefaultTCPBuffers. It is shared by all connections: the more there are, the smaller is the buffer of each.
	TCPBuffers int64
	// PCAP is a file to which every frame is written in pcap format; empty means none. Bridge mode only.
	PCAP string

	// Confine is for a process that runs only this sandbox. It drops what a data plane does not need: all capabilities, the
	// ability to gain privileges by execve, being traced by other processes of the user, and system calls such as execve
	// itself. This cannot be undone, and no other sandbox can be made in the process. It also sizes the Go scheduler to the
	// load.
	Confine bool

	// RuntimeDir is the directory of the state of all sandboxes of this user; empty means $XDG_RUNTIME_DIR/rootless-run.
	RuntimeDir string
	// Logger receives log records; nil means none. Warnings that docker run prints too are at level Warn, with the text as
	// the message and no attributes.
	Logger *slog.Logger

	// Signals, if set, are passed on to the command. Before the command has started, a signal n that requests a program to end
	// (SIGTERM and the like) ends Run instead, with the exit code 128+n, and the others are kept for the command. After the command
	// has exited, while other sandboxes are still in its network, such a signal ends the sandbox. Signals that a terminal sends must
	// not come here: a started command receives them itself, because it is in the caller's process group.
	Signals <-chan os.Signal

	// OnStart, if set, is called once, when the command has started.
	OnStart func(Started)
	// OnPublish, if set, is called for each port that PublishAll opens later; not concurrently.
	OnPublish func(PortMapping)
}

// Started describes a sandbox when its command has started.
type Started struct {
	ID   string // 64 hexadecimal digits
	Name string
	PID  int // of the command, in the caller's pid namespace; 0 if unknown
}

// UsageError is a Config that contradicts itself or holds a value that cannot be used. Its text is
// Docker's where Docker has one.
type UsageError struct {
	Field string // of Config
	Err   error
}

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }
