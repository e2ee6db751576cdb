// Package slirp implements the interface of slirp4netns towards its callers: the command line, the texts, and the API socket for
// forwarding ports. Podman, Buildah and RootlessKit start slirp4netns by name and use this interface; cmd/slirp4netns, our drop-in
// replacement, connects it to the library.
//
// Of our packages it imports getopt only; the ports are opened by a Forwarder that the program passes.
//
// # Command line
//
//	slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
//
// Parse parses it as GNU getopt_long does. The program writes an error to standard error and the usage to standard output, and exits
// with 1. The usage names every option, because Podman searches it for the options that it may use.
//
// # API
//
// Each connection carries one JSON request and one JSON reply, without a newline; then the server ends the stream:
//
//	{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}
//	{"return":{"id":1}}
//	{"execute":"list_hostfwd"}
//	{"return":{"entries":[{"id":1,…}]},"entries":[{"id":1,…}]}
//	{"execute":"remove_hostfwd","arguments":{"id":1}}
//	{"return":{}}
//	{"error":{"desc":"bad request: unknown execute"}}
//
// list_hostfwd has its entries under two keys: the manual of slirp4netns documents the first, the program sends the second.
//
// # Concurrency and locks
//
// API has one goroutine that accepts connections and one for each connection; Close ends them. API.change is held while a request
// is carried out, so that Forwarder's methods are not called concurrently. API.mu guards the set of connections. The two are never
// held together.
//
// # Limits
//
// A request has at most maxRequest bytes and must be complete within requestTimeout. maxClients connections are served at the same
// time, so that a caller that hangs does not delay the others.
package slirp
