// Slirp4netns stands in for the program of that name: Podman, Buildah and RootlessKit start it with its command line,
// descriptors and socket, and find rootlessnet's engine behind them.
//
// # Life
//
//	options -> the namespace is joined, the TAP made -> API socket -> "1" to the ready descriptor -> until
//	the namespace ends | anything happens on the exit descriptor | SIGTERM, SIGINT, SIGHUP
//
// It exits with 0 then, and leaves nothing behind; with 1 when it could not start or the network broke.
//
// # Differences
//
// A server inside sees the real address of a client, where the original shows it 10.0.2.2 (clients on the host's
// loopback appear as that here too). Of the addresses in the subnet only the gateway's leads to the host's loopback.
// --enable-seccomp does what --enable-sandbox does, a filter of system calls included, and both take effect before the first
// packet is read.
package main
