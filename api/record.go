package api

import "rootlessnet/internal/state"

// SandboxFromRecord converts a record of the state directory into the wire type. It is for the supervisor, which adds what
// the record does not hold, and for a program that lists a sandbox whose supervisor does not answer. Ports is empty: the
// record holds their text only.
//
// This is the only place where the API depends on internal/state, which does not depend on the API.
func SandboxFromRecord(r state.Record) Sandbox {
	return Sandbox{
		ID:         r.ID,
		Name:       r.Name,
		Created:    r.Created,
		Status:     Status(r.Status),
		Supervisor: Process{PID: r.Supervisor.PID, StartTime: r.Supervisor.StartTime},
		InitPID:    r.InitPID,
		ExitCode:   r.ExitCode,
		Command:    r.Command,
		Labels:     r.Labels,
		Network:    r.Network,
		Hostname:   r.Hostname,
		NetNS:      r.NetNS,
		Interface:  r.Interface,
		Link:       r.Link,
		Datapath:   r.Datapath,
		MAC:        r.MAC,
		MTU:        r.MTU,
		Subnets:    r.Subnets,
		Gateways:   r.Gateways,
		Addresses:  r.Addresses,
		Ports:      []Port{},
	}
}
