package api

import (
	"context"
	"net/netip"
	"syscall"
)

// Backend is the sandbox that a Server answers for. Its methods are called concurrently. The server answers an error that
// is, or wraps, an *Error with that error's status, and any other error with 500; the comment of each method lists the statuses that it uses.
type Backend interface {
	Inspect() Sandbox
	Stats() Stats
	// Ports lists the sockets of all published ports.
	Ports() []Port
	// AddPorts publishes all ports of a spec (docker run -p) or none, and returns the sockets it bound. Statuses: 400 for
	// a malformed spec, 409 for a port that cannot be bound or a sandbox without ports.
	AddPorts(ctx context.Context, spec string) ([]Port, error)
	// RemovePorts closes the published ports that match a spec, and returns them. Statuses: 400 for a malformed spec, 404
	// if a part of it matches nothing, 409 for a sandbox without ports.
	RemovePorts(ctx context.Context, spec string) ([]Port, error)
	// AddMapping publishes one port, on one address or on all, and returns the sockets it bound, which share one ID.
	// Status: 409 as for AddPorts.
	AddMapping(ctx context.Context, m Mapping) ([]Port, error)
	// RemoveMapping closes the sockets with an ID, and returns them. Status: 404 if there are none.
	RemoveMapping(ctx context.Context, id int) ([]Port, error)
	// Kill sends a signal to the sandbox's command. Status: 409 if there is no command that runs.
	Kill(sig syscall.Signal) error
	// Rename gives the sandbox another name. Statuses: 400 for a malformed name, 409 if a live sandbox has it, or this one has
	// no state directory.
	Rename(name string) error
	// Lease keeps the sandbox until release is called, which happens once. Status: 409 when the sandbox is about to end.
	Lease(kind LeaseKind) (release func(), err error)
}

// Mapping is one port to publish.
type Mapping struct {
	Proto    string     // "tcp" or "udp"
	HostIP   netip.Addr // the zero value means every address of both families
	GuestIP  netip.Addr // the zero value means the guest's own address
	HostPort uint16
	// GuestPort is the port that the guest listens on.
	GuestPort uint16
}
