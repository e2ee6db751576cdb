package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"rootlessnet/internal/state"
)

// Backend is what a Server speaks for. Its methods are called concurrently. An error that is (or wraps) an *Error
// keeps its status; any other is a 500.
type Backend interface {
	Inspect() Sandbox
	Stats() Stats
	// Ports lists what is published now.
	Ports() []Port
	// AddPorts publishes all ports of a spec (docker run -p) or none, and returns what was bound.
	AddPorts(ctx context.Context, spec string) ([]Port, error)
	// RemovePorts closes the published ports that a spec names, and leaves the others alone.
	RemovePorts(ctx context.Context, spec string) ([]Port, error)
	// AddMapping publishes one port, on one address or on all, and returns what was bound: sockets of the same ID.
	AddMapping(ctx context.Context, m Mapping) ([]Port, error)
	// RemoveMapping closes the sockets of an ID.
	RemoveMapping(ctx context.Context, id int) ([]Port, error)
	// Lease keeps the sandbox until release is called, once. It fails when the sandbox is about to end.
	Lease(kind LeaseKind) (release func(), err error)
}

// LeaseKind says what a lease is for.
type LeaseKind string

const (
	LeaseMember LeaseKind = "member" // another sandbox in the same network; the network waits for it
	LeaseExec   LeaseKind = "exec"   // a command run beside the first; ends with it
)

// Sandbox is the answer to GET /sandbox: the record of the state directory, and what only the supervisor knows.
type Sandbox struct {
	state.Record
	Ports   []Port `json:"ports"` // in place of the record's
	Members int    `json:"members"`
	// PublishAll and HostLoopback are as configured; HostLoopback is "all" or ports separated by commas.
	PublishAll   bool   `json:"publishAll"`
	HostLoopback string `json:"hostLoopback,omitempty"`
	// DNS are the addresses that answer DNS inside; StateDir is the directory of the sandbox.
	DNS      []netip.Addr `json:"dns,omitempty"`
	StateDir string       `json:"stateDir,omitempty"`
}

// Mapping is a port to publish, the choice of which is made: HostIP may be missing for every address, GuestIP for the
// guest's own.
type Mapping struct {
	Proto               string // "tcp" or "udp"
	HostIP, GuestIP     netip.Addr
	HostPort, GuestPort uint16
}

// Port is one published port as it is bound.
type Port struct {
	Proto     string     `json:"proto"` // "tcp" or "udp"
	HostIP    netip.Addr `json:"hostIp"`
	HostPort  uint16     `json:"hostPort"`
	GuestPort uint16     `json:"guestPort"`
	GuestIP   netip.Addr `json:"guestIp,omitzero"` // where it is not the guest's own
	Auto      bool       `json:"auto,omitempty"`   // opened by publish-all
	// ID names the mapping that this is a socket of, for as long as the sandbox lives; from 1 on.
	ID int `json:"id,omitempty"`
}

// Host is the address on the host.
func (p Port) Host() netip.AddrPort { return netip.AddrPortFrom(p.HostIP, p.HostPort) }

// Guest is the port inside as Docker writes it: "80/tcp".
func (p Port) Guest() string { return strconv.Itoa(int(p.GuestPort)) + "/" + p.Proto }

// String is the port as docker ps prints it: "0.0.0.0:8080->80/tcp".
func (p Port) String() string { return fmt.Sprintf("%s->%s", p.Host(), p.Guest()) }

// Stats is the answer to GET /sandbox/stats. Rx and Tx are seen from inside, as in docker stats.
type Stats struct {
	Read      time.Time `json:"read"`
	RxBytes   uint64    `json:"rxBytes"`   // Rx and Tx are the link's
	RxPackets uint64    `json:"rxPackets"` // frames on the link; one may carry up to 64 KiB
	RxDropped uint64    `json:"rxDropped"`
	TxBytes   uint64    `json:"txBytes"`
	TxPackets uint64    `json:"txPackets"`
	TxDropped uint64    `json:"txDropped"`
	// Counters are all others, by dotted names such as "tcp.accepted" or "policy.loopback"; they only grow, but for
	// those below "now.", which are gauges.
	Counters map[string]uint64 `json:"counters"`
}

// The counters of payload that the kernel moved beside the link.
const (
	CounterSplicedIn  = "tcp.spliced-bytes-in"
	CounterSplicedOut = "tcp.spliced-bytes-out"
)

// NetIO is how many bytes the sandbox has received and sent, by the link and beside it.
func (s *Stats) NetIO() (rx, tx uint64) {
	return s.RxBytes + s.Counters[CounterSplicedIn], s.TxBytes + s.Counters[CounterSplicedOut]
}

// PortRequest is the body of POST and DELETE /sandbox/ports.
type PortRequest struct {
	Spec string `json:"spec"`
}

// LeaseRequest is the body of POST /sandbox/lease.
type LeaseRequest struct {
	Kind LeaseKind `json:"kind"`
}

// Error is a failure that has a status: returned by a Backend, sent as {"message"}, and returned by a Client.
type Error struct {
	Status  int // of HTTP
	Message string
	Err     error // what it is made of; not sent
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// Invalid, NotFound and Conflict make an *Error of an error, with its text.
func Invalid(err error) error  { return &Error{http.StatusBadRequest, err.Error(), err} }
func NotFound(err error) error { return &Error{http.StatusNotFound, err.Error(), err} }
func Conflict(err error) error { return &Error{http.StatusConflict, err.Error(), err} }

// errorBody is what an Error is on the wire.
type errorBody struct {
	Message string `json:"message"`
}

// Limits of both sides.
const (
	// maxRequest holds a port spec many times over.
	maxRequest = 64 << 10
	// maxResponse holds 65535 published ports of two protocols at about 100 bytes.
	maxResponse = 16 << 20
)

// leaseProtocol is the word in the Upgrade header of a lease.
const leaseProtocol = "rootlessnet-lease"
