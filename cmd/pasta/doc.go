// Pasta is a drop-in replacement for the program of that name: Podman and RootlessKit start it with pasta's command line, and it
// connects the network namespace with the library rootlessnet.
//
// Package internal/pasta parses the command line. This package translates the options into a rootlessnet.Config (plan.go), copies
// the host's addresses and routes (host.go), opens ports (ports.go) and runs as a daemon (daemon.go) or with a command
// (command.go, signals.go).
//
// # Lifecycle
//
// For a PID or a path the program writes its pid file and goes to the background once addresses, routes and ports are set up: the
// process that the caller started then exits with 0. The daemon ends when the namespace ends, or by SIGTERM, SIGQUIT or SIGINT.
// For a command it stays in the foreground and exits with the command's status, or with 128 plus the number of the signal that
// ended the command. A signal is passed on to a command that handles it, and has any other one killed (signals.go). After a failure
// the exit status is 1.
//
//	foreground process ── starts itself again, in a new session ──> daemon: joins the namespace, configures, binds ports
//	   |<──────── one byte, after a failure with the error message ────┘ then closes the standard streams
//	exit
//
// # Goroutines
//
// hostWatch has two goroutines: one reads rtnetlink messages, the other applies changes of the host's network to the namespace
// after a quiet period. The follower has one, which reads the listening sockets of both sides once per second. bridge.close stops
// both, closes the sandbox and waits for them. The locks of this package (daemon.mu, logFile.mu) are never held together.
//
// # Differences from the original
//
// It follows the host's addresses and routes while it runs (hostWatch); an address that moves to another interface of the host
// stays inside as a deprecated one. With "auto" it forwards a port while a program listens on
// it (follower); ports that it has opened itself on one side do not count as servers of that side. If the host has no network for
// a family at the start, the namespace gets link-local addresses.
package main
