// Package plan turns a Config, what the caller asks for, into a Plan, the values that the other packages carry out.
//
// # Theory of operation
//
// [Resolve] (for a command) and [ResolveAttach] (for a namespace that another program made) fill in every default, find
// every contradiction, and choose subnets that collide with no route of the host. Everything that is wrong with a Config is
// found here, before anything is created. Port specs are read by Docker's own parser; where Docker has words for a
// mistake, the error has the same text.
//
// # What it may touch
//
// The package imports none of our packages, opens no socket, and starts no goroutine. What it needs to know about the host, the
// destinations of its routes, comes through the interface [Host]; only for Config.User are the files of users and groups read. It is the package gateway that
// translates a Plan into the configurations of the stack, the policy and the forwarder.
//
// # Failure cases
//
// Every error of Resolve and ResolveAttach is a [*UsageError], which names the field of the Config. If the routes of the
// host cannot be read, the first candidate subnet is taken and Plan.Warnings says so.
//
// # Concurrency
//
// There are no locks. A Config is only read; a Plan is not changed after it was returned, so goroutines may share it.
package plan
