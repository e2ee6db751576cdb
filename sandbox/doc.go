// Package sandbox is the lifecycle of sandboxes: from a plan to a running sandbox, and its removal.
//
// # Theory of operation
//
// [Run] starts a command in namespaces of its own; [Attach] connects a namespace that another program made. Both resolve their
// Config (package plan), open the state directory's record, have userns start the agent process in the namespaces, connect
// the network (package gateway) and open the control socket (package api). Run then starts the command, passes signals on to it,
// copies its output to the log if asked to, and waits for it and for the sandboxes that have joined its network (leases).
//
// The agent process is this program, started a second time. The initialisation of this package recognises that and never
// returns there (Init).
//
// # What it may touch
//
// It imports plan, gateway, userns, api and dns (for the files of sandboxes without a gateway). It does not use the stack, the
// forwarder or the link device.
//
// # States
//
//	created     state record made, published ports bound
//	configured  namespaces and link exist, the gateway runs, the control socket listens
//	running     the command runs; of Attach: the uplink is there
//	lingering   the command has ended, sandboxes that joined the network have not
//	closed      everything is undone; with Config.KeepEnded the state record and the log stay
//
// States are entered in this order only. A failure before running undoes what was made.
//
// # Failure cases
//
// A Config that is wrong gives a *plan.UsageError. A failure of the agent process, or of the network that was joined, ends the
// sandbox with an error. A state record that cannot be updated and a log that cannot be written are logged and otherwise
// ignored: they do not stop a network that works.
//
// # Owners
//
// Each part of a sandbox that has a state of its own is a type with one file: stateRecord (state directory), attachTarget
// (the namespace of Attach), joinedNetwork (the lease on another sandbox), leases (those on this one), commandSignals,
// outputLog and scheduler. Every goroutine belongs to one of them or to sandbox.wg, and sandbox.close waits for all.
//
// # Lock order
//
// sandbox.changing (held by SetNetwork), then the lock of state.Entry (held while describe fills in the record), then the locks
// of package gateway. leases.mu is taken with no other lock held, and nothing is locked under it.
package sandbox
