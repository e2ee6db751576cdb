// Slirp4netns is a drop-in replacement for the program of that name: Podman, Buildah and RootlessKit start it with slirp4netns's
// command line, descriptors and API socket, and it connects the network namespace with the library rootlessnet.
//
// Package internal/slirp parses the command line and serves the API socket. This package translates the options into a
// rootlessnet.Config and attaches the namespace.
//
// # Lifecycle
//
//  1. It parses the options, takes over the exit, ready and TAP descriptors, and closes all other inherited descriptors.
//  2. It joins the namespace and creates the TAP device; or it uses the one that the caller has opened, or waits until a virtual
//     machine connects to a unix socket (bess.go).
//  3. It opens the API socket and writes "1" to the ready descriptor.
//  4. It runs until the namespace ends, any event on the exit descriptor, or SIGTERM, SIGINT or SIGHUP.
//
// Then it removes what it has created and exits with 0. It exits with 1 if it could not start or the network failed.
//
// # Differences from the original
//
// A server inside sees the real address of a client, where the original shows 10.0.2.2; clients on the host's loopback appear as
// 10.0.2.2 here too. Of the addresses in the subnet only the gateway's is translated to the host's loopback. --enable-seccomp is the
// same as --enable-sandbox, which includes a filter of system calls; both take effect before the first packet is read.
package main
