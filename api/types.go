package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// The wire types of the sandbox's own part of the API. openapi.yaml describes them, and a test compares the two. They are
// separate from the record in the state directory (internal/state): record.go converts that record into a Sandbox.

// Sandbox is the answer to GET /v1/sandbox.
type Sandbox struct {
	ID      string    `json:"id"` // 64 hexadecimal digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Status  Status    `json:"status"`

	Supervisor Process  `json:"supervisor"`         // the process that answers on the control socket
	InitPID    int      `json:"initPid,omitempty"`  // PID 1 of the sandbox, in the supervisor's pid namespace
	ExitCode   *int     `json:"exitCode,omitempty"` // of the command, once the status is lingering
	Command    []string `json:"command"`

	Labels map[string]string `json:"labels,omitempty"` // the caller's own

	// Network is the mode: "bridge", "host", "none", "container:ID", or "attach" for a namespace that another program
	// made; Command then names that namespace.
	Network  string `json:"network"`
	Hostname string `json:"hostname,omitempty"`
	NetNS    uint64 `json:"netns,omitempty"` // inode of the network namespace

	Interface string         `json:"interface,omitempty"` // name of the uplink inside
	Link      string         `json:"link,omitempty"`      // kind of link device in use
	Datapath  string         `json:"datapath,omitempty"`  // "stack" or "splice"
	MAC       string         `json:"mac,omitempty"`       // of the guest's interface
	MTU       int            `json:"mtu,omitempty"`       // of the guest's interface, in bytes
	Subnets   []netip.Prefix `json:"subnets,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`  // one for each subnet, in the same order
	Addresses []netip.Addr   `json:"addresses,omitempty"` // of the guest, one for each subnet, in the same order
	Ports     []Port         `json:"ports"`               // published ports

	Members int `json:"members"` // other sandboxes that hold a lease on this network
	// PublishAll and HostLoopback are as configured. HostLoopback is "all", or ports separated by commas.
	PublishAll   bool         `json:"publishAll"`
	HostLoopback string       `json:"hostLoopback,omitempty"`
	DNS          []netip.Addr `json:"dns,omitempty"`      // addresses that answer DNS queries inside
	StateDir     string       `json:"stateDir,omitempty"` // the sandbox's directory, where it has one
}

// Status is the phase of a sandbox's lifecycle.
type Status string

// The phases, in order.
const (
	StatusCreated   Status = "created"   // the sandbox is being set up
	StatusRunning   Status = "running"   // the command runs
	StatusLingering Status = "lingering" // the command has exited; other sandboxes still use the network
)

// Process identifies a process even after its pid was reused.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // in clock ticks since boot (proc(5), /proc/pid/stat field 22)
}

// Port is one listening socket of a published port.
type Port struct {
	Proto     string     `json:"proto"` // "tcp" or "udp"
	HostIP    netip.Addr `json:"hostIp"`
	HostPort  uint16     `json:"hostPort"`
	GuestPort uint16     `json:"guestPort"`
	GuestIP   netip.Addr `json:"guestIp,omitzero"` // the address to forward to, where it is not the guest's own
	Auto      bool       `json:"auto,omitempty"`   // opened by publish-all
	// ID identifies the mapping that this socket belongs to for as long as the sandbox exists; the first is 1. A mapping of
	// every address has one socket for IPv4 and one for IPv6, with the same ID.
	ID int `json:"id,omitempty"`
}

// Host returns the address and port on the host.
func (p Port) Host() netip.AddrPort { return netip.AddrPortFrom(p.HostIP, p.HostPort) }

// Guest returns the port inside in Docker's form: "80/tcp".
func (p Port) Guest() string { return strconv.Itoa(int(p.GuestPort)) + "/" + p.Proto }

// String returns the port in the form of docker ps: "0.0.0.0:8080->80/tcp".
func (p Port) String() string { return fmt.Sprintf("%s->%s", p.Host(), p.Guest()) }

// Stats is the answer to GET /v1/sandbox/stats. Rx and Tx count the frames of the link and are from the guest's point of
// view, as in docker stats.
type Stats struct {
	Read      time.Time `json:"read"` // when the counters were read
	RxBytes   uint64    `json:"rxBytes"`
	RxPackets uint64    `json:"rxPackets"` // frames, of up to 64 KiB each
	RxDropped uint64    `json:"rxDropped"`
	TxBytes   uint64    `json:"txBytes"`
	TxPackets uint64    `json:"txPackets"`
	TxDropped uint64    `json:"txDropped"`
	// Counters are all others, by dotted names such as "tcp.in" or "policy.loopback". Those whose names begin with "now."
	// are gauges; the others only grow.
	Counters map[string]uint64 `json:"counters"`
}

// Names of the counters of TCP payload that was spliced between two sockets and therefore never crossed the link, in bytes.
const (
	CounterSplicedIn  = "tcp.spliced-bytes-in"
	CounterSplicedOut = "tcp.spliced-bytes-out"
)

// NetIO returns how many bytes the sandbox has received and sent: over the link and by splicing.
func (s *Stats) NetIO() (rx, tx uint64) {
	return s.RxBytes + s.Counters[CounterSplicedIn], s.TxBytes + s.Counters[CounterSplicedOut]
}

// PortRequest is the body of POST and DELETE /v1/sandbox/ports.
type PortRequest struct {
	Spec string `json:"spec"` // in the grammar of docker run -p
}

// LeaseRequest is the body of POST /v1/sandbox/lease.
type LeaseRequest struct {
	Kind LeaseKind `json:"kind"`
}

// LeaseKind is the purpose of a lease.
type LeaseKind string

const (
	// LeaseMember is for another sandbox in the same network: the network stays until the lease is released.
	LeaseMember LeaseKind = "member"
	// LeaseExec is for a command that runs beside the sandbox's own: the lease ends with the sandbox and does not prolong it.
	LeaseExec LeaseKind = "exec"
)
