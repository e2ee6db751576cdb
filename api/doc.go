// Package api is the control socket of a running sandbox: HTTP and JSON over a unix socket. It holds the wire types, the
// Server, which belongs to the sandbox's supervisor, and the Client.
//
// # Paths
//
//	GET    /v1/sandbox         Sandbox
//	GET    /v1/sandbox/stats   Stats
//	GET    /v1/sandbox/ports   []Port
//	POST   /v1/sandbox/ports   PortRequest -> 201 []Port: the sockets that were bound
//	DELETE /v1/sandbox/ports   PortRequest -> 200 []Port: the sockets that were closed
//	POST   /v1/sandbox/lease   LeaseRequest -> 101, then the connection is the lease
//	POST   /v1/sandbox/kill    KillRequest -> 200 without a body
//	POST   /v1/sandbox/rename  RenameRequest -> 200 without a body
//
//	GET    /v1/info            RootlessKitInfo
//	GET    /v1/ports           []RootlessKitPortStatus
//	POST   /v1/ports           RootlessKitPortSpec -> 201 RootlessKitPortStatus
//	DELETE /v1/ports/{id}      200 without a body
//
// Every path begins with the version of the API. The first group is the sandbox's own part: all its paths begin with
// /v1/sandbox, so they cannot collide with those of the second group. The second group is version 1.1.1 of RootlessKit's REST
// API; RootlessKit defines its paths and JSON: rootlessctl uses it, and so does Docker's proxy of published ports. A change
// that would break clients of the first group becomes /v2/sandbox; fields are added without a new version, so a client must
// ignore unknown ones.
//
// A failure has a status of 400 or above and the body {"message": TEXT}. An unknown path or version is answered with 404 and
// {"message": TEXT, "versions": ["v1"]}; another method of a known path with 405. openapi.yaml is the schema of all this
// (OpenAPI 3.1). It is not served; a test compares it with the routes, the wire types and the answers, in both directions.
//
// # Theory of operation
//
// The Server passes each request to a Backend, which the supervisor implements. A lease keeps the sandbox's network and
// namespaces after its command has exited. It lasts as long as its connection, so the kernel ends it when the process that
// holds it ends in any way. The server closes the connection when the sandbox ends; the holder must then end, too.
//
// # Access
//
// The command inside the sandbox runs as the same user of the host as the supervisor, so neither file modes nor the uid
// exclude it. A peer may use the API if its uid is that of the server (SO_PEERCRED) and its user namespace is that of the
// server: the link /proc/PID/ns/user is the same or, where the kernel does not show that link, the uid maps are the same. A
// server that runs below the initial user namespace also admits its user from the initial one. SO_PEERPIDFD, where the kernel
// has it (6.5), proves that the pid was not reused between the check and its end. Every other peer gets status 403.
//
// # Dependencies
//
// The package imports the standard library, golang.org/x/sys/unix and, in record.go only, internal/state. The wire types are
// separate from the record on disk, so that either can change without the other: SandboxFromRecord converts the one into the
// other, and a test compares their fields. Counters are plain numbers by name; the package does not depend on any datapath.
//
// # Limits and failures
//
// The size of requests and responses, the number of connections and leases, and the time for a request are bounded by named
// constants (limits.go). A request that is too large gets status 413, a lease beyond the limit 429, a request while the server
// closes 503. Connections beyond the limit wait in the backlog of the listener. There is no encryption, no remote access and no
// event stream.
package api
