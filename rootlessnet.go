package rootlessnet

import (
	"context"

	"rootlessnet/plan"
	"rootlessnet/sandbox"
)

// The caller's request, see package plan.
type (
	// Config describes one sandbox: a command and its network.
	Config = plan.Config
	// HostLoopback names the services on the host's loopback that the sandbox may reach.
	HostLoopback = plan.HostLoopback
	// NetworkPlan is the guest's network in full, for a Config where Subnet, IP and the like cannot express it.
	NetworkPlan = plan.NetworkPlan
	// Announced is the configuration that a guest receives by DHCP or router advertisement.
	Announced = plan.Announced
	// Route is one route inside the guest's namespace, by the uplink.
	Route = plan.Route
	// SpecialAddr gives an address a meaning of its own.
	SpecialAddr = plan.SpecialAddr
	// SpecialTarget is that meaning.
	SpecialTarget = plan.SpecialTarget
	// PortMapping is one published port as it is requested.
	PortMapping = plan.PortMapping
	// LoopbackForward forwards a port of the loopback inside the namespace to the host's.
	LoopbackForward = plan.LoopbackForward
	// Target names the network namespace that Attach connects.
	Target = plan.Target
	// Started describes a sandbox whose command has just started.
	Started = plan.Started
	// UsageError is a Config that contradicts itself or holds a value that cannot be used.
	UsageError = plan.UsageError
)

// What a caller gets, see package sandbox.
type (
	// Sandbox is a namespace that Attach has connected. Its methods may be called concurrently.
	Sandbox = sandbox.Attached
	// Port is one socket of a published port, as it is bound on the host.
	Port = plan.Port
	// Info describes a sandbox, addresses included.
	Info = sandbox.Info
	// Stats are the counters of a sandbox.
	Stats = sandbox.Stats
)

// Run runs a command in a sandbox and returns its exit code when the command, everything it has started, and every sandbox
// that has joined its network have ended. The error is nil if the command ran; the code is then the command's own or 128+n. It is
// nil, and the code 128+n, also if signal n came before the command had started (Config.Signals). Otherwise nothing is left behind and the code is ExitFailure, ExitCannotExec or ExitNotFound. When ctx ends, the command is
// killed. Several may run at once.
func Run(ctx context.Context, c Config) (exitCode int, err error) { return sandbox.Run(ctx, c) }

// Attach connects a network namespace that another program made. It returns when the uplink exists, configured if
// Config.Configure says so, and every port is bound. The owner of the namespace needs no privilege, and neither does root of
// the user namespace that owns it. The fields of the Config that are about a command have no meaning here. When ctx ends,
// the sandbox is closed.
func Attach(ctx context.Context, t Target, c Config) (*Sandbox, error) {
	return sandbox.Attach(ctx, t, c)
}

// Init runs the part of this program that belongs inside the namespaces, if that is what the process was started for; it
// does not return then. The initialisation of package sandbox calls it; a program needs to call it only if an init function
// that runs earlier must not run twice.
func Init() { sandbox.Init() }

// ParsePortSpec reads one port spec as docker run -p takes it, see plan.ParsePortSpec.
func ParsePortSpec(spec string) ([]PortMapping, error) { return plan.ParsePortSpec(spec) }

// CheckSysctl says what is wrong with an entry of Config.Sysctls, or returns nil.
func CheckSysctl(spec string) error { return plan.CheckSysctl(spec) }

// ParsePortSpecs reads several specs, and makes sure that no two of them want the same port of the host.
func ParsePortSpecs(specs []string) ([]PortMapping, error) { return plan.ParsePortSpecs(specs) }

// ParseHostLoopback reads "all", or ports separated by commas; the empty string names none.
func ParseHostLoopback(s string) (HostLoopback, error) { return plan.ParseHostLoopback(s) }

// CheckExtraHost returns the error of an invalid entry of Config.ExtraHosts, or nil.
func CheckExtraHost(spec string) error { return plan.CheckExtraHost(spec) }
