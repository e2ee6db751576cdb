// Package api is the control socket of a running sandbox: HTTP and JSON over a unix socket in the sandbox's state
// directory.
//
//	GET    /sandbox         Sandbox
//	GET    /sandbox/stats   Stats
//	GET    /sandbox/ports   []Port
//	POST   /sandbox/ports   PortRequest -> 201 []Port, what was opened
//	DELETE /sandbox/ports   PortRequest -> 200 []Port, what was closed
//	POST   /sandbox/lease   LeaseRequest -> 101, then the connection itself is the lease
//	GET    /v1/info         what RootlessKit answers there
//	GET    /v1/ports        likewise: [{id, spec}]
//	POST   /v1/ports        {proto, parentIP, parentPort, childIP, childPort} -> 201 {id, spec}
//	DELETE /v1/ports/{id}
//
// A failure is a status of 400 and above with {"message": TEXT}. The paths that begin with /v1/ are the API 1.1.1 of
// RootlessKit, for rootlessctl and for Docker's proxy of published ports, which look for a socket api.sock in a directory.
//
// # Theory of operation
//
// A Server belongs to the supervisor and asks a Backend. A lease keeps the sandbox's network and namespaces alive
// after its own command is gone: it lasts as long as its connection, so it cannot outlive its holder in whatever way
// that ends. When the server closes the connection, the sandbox has ended and what joined it must end too.
//
// # Who may speak
//
// The command inside runs as the same user of the host, so neither file modes nor a uid tell it from its master.
// A peer is heard if its uid is ours (SO_PEERCRED) and its user namespace is ours: the link /proc/PID/ns/user leads
// where our own does or, where the kernel does not show it, the uid maps are the same. A server that runs in a namespace
// below the first one also hears its user from there. SO_PEERPIDFD, where the kernel
// has it (6.5), proves that the pid was not reused between the two looks.
//
// # Limits
//
// Bodies, headers, connections and leases are bounded by named constants. There is no encryption, no remote access,
// and no event stream.
package api
