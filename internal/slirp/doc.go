// Package slirp is what a caller of slirp4netns sees of it: the command line, the texts, and the socket on which ports
// are asked for. Podman, Buildah and RootlessKit start that program by name and talk to it in this way; the program of
// ours that takes its place does so through this package, and has another engine behind it.
//
// # Command line
//
//	slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
//
// Parse reads it as GNU getopt_long does. A mistake is reported on standard error, the usage follows on standard output,
// and the exit status is 1. The usage names every option, because Podman looks for them in it.
//
// # API
//
// One JSON request a connection, one reply without a line end, then the end of the stream:
//
//	{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}
//	{"return":{"id":1}}
//	{"execute":"list_hostfwd"}
//	{"return":{"entries":[{"id":1,…}]},"entries":[{"id":1,…}]}
//	{"execute":"remove_hostfwd","arguments":{"id":1}}
//	{"return":{}}
//	{"error":{"desc":"bad request: unknown execute"}}
//
// list_hostfwd has its entries under two keys: the manual of slirp4netns documents the first, the program sends the
// second.
//
// # Limits
//
// A request is at most maxRequest bytes and must be complete within requestTimeout; a few connections are served at a
// time, so that a caller that hangs keeps nobody else waiting.
package slirp
