package rootlessnet

import (
	"context"
	"errors"
	"os"

	"rootlessnet/api"
)

// Target names the network namespace that Attach connects: by PID, NetNS or TAP, exactly one of them.
type Target struct {
	// PID is a process in the namespace. The sandbox ends with it.
	PID int
	// NetNS is the path of the namespace, such as /run/netns/NAME or /proc/PID/ns/net. The sandbox ends when the path is
	// gone or is another namespace.
	NetNS string
	// UserNS is the path of the user namespace to enter first; empty means the one that owns the network namespace,
	// where that is not ours already.
	UserNS string
	// TAP is the open device of a namespace that we do not enter, attached with IFF_NO_PI and not to IFF_MULTI_QUEUE.
	// It is the caller's to configure the interface, and the sandbox ends when the device does. Attach takes it over.
	TAP *os.File
}

// Port is a published port as it is bound.
type Port = api.Port

// Stats are the counters of a sandbox.
type Stats = api.Stats

// Sandbox is a namespace that Attach has connected. Its methods may be called concurrently.
type Sandbox struct {
	s *sandbox
}

// Attach connects a network namespace that somebody else made, and returns when the uplink is there, configured if
// Config.Configure says so, and every port is bound. The namespace's owner needs no privilege; nor does root inside of
// the user namespace that owns it. Of the Config, what is about a command has no meaning here. When ctx ends, the
// sandbox is closed.
func Attach(ctx context.Context, t Target, c Config) (*Sandbox, error) {
	return nil, errors.New("attach: " + errors.ErrUnsupported.Error())
}

// ID and Name are how other programs find the sandbox (rootless-net ps).
func (b *Sandbox) ID() string   { return b.s.entry.ID() }
func (b *Sandbox) Name() string { return b.s.entry.Name() }

// AddPort publishes all ports of a spec (ParsePortSpec) or none, and returns what was bound.
func (b *Sandbox) AddPort(spec string) ([]Port, error) {
	return (*backend)(b.s).AddPorts(context.Background(), spec)
}

// RemovePort closes the published ports that a spec names; what it leaves out may be anything.
func (b *Sandbox) RemovePort(spec string) ([]Port, error) {
	return (*backend)(b.s).RemovePorts(context.Background(), spec)
}

// AddMappings publishes all mappings or none, and returns what was bound.
func (b *Sandbox) AddMappings(mappings ...PortMapping) ([]Port, error) {
	return (*backend)(b.s).addMappings(mappings)
}

// RemovePorts closes the published ports for which want says so, and returns them.
func (b *Sandbox) RemovePorts(want func(Port) bool) []Port {
	return (*backend)(b.s).removePorts(want)
}

// Ports lists what is published now.
func (b *Sandbox) Ports() []Port { return (*backend)(b.s).Ports() }

// Stats reads the counters.
func (b *Sandbox) Stats() Stats { return (*backend)(b.s).Stats() }

// Done is closed when the sandbox has ended by itself or by its context, with everything undone: Close is not needed
// then, but does no harm.
func (b *Sandbox) Done() <-chan struct{} { return b.s.gone }

// Err says why the sandbox has ended: nil when the namespace went or Close was called, the context's error when that
// ended. Before Done it is nil.
func (b *Sandbox) Err() error { return nil }

// Close undoes what Attach made and waits until nothing of it is left.
func (b *Sandbox) Close() error { return nil }
