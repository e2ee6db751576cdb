// Package plan resolves a Config, the caller's request, into a Plan, the values that the other packages use.
//
// # Theory of operation
//
// [Resolve] (for a command) and [ResolveAttach] (for a namespace that another program made) fill in every default, find
// every contradiction, and choose subnets that collide with no route of the host. Everything that is wrong with a Config is
// found here, before anything is created. Port specs are read by Docker's own parser; where Docker has an error text
// for a mistake, ours is the same.
//
// # What it may touch
//
// The package imports none of our packages, opens no socket, and starts no goroutine. The only property of the host that it needs,
// the destinations of its routes, comes through the interface [Host]; for Config.User it reads the files of users and groups. Package gateway
// translates a Plan into the configurations of the stack, the policy and the forwarder.
//
// # Failure cases
//
// Every error of Resolve and ResolveAttach is a [*UsageError], which names the field of the Config. If the routes of the
// host cannot be read, the first candidate subnet is taken and Plan.Warnings reports that.
//
// # Concurrency
//
// There are no locks. A Config is only read; a Plan is not changed after it was returned, so goroutines may share it.
package plan
