// Pasta stands in for the program of that name: Podman and RootlessKit start it with its command line, and find
// rootlessnet's engine behind it.
//
// # Life
//
// For a process or a path it goes to the background once addresses, routes and ports are there, with its pid file
// written: the process that was started exits with 0 then. It ends with the namespace, or by SIGTERM, SIGQUIT or SIGINT.
// For a command it stays in the foreground and exits with the command's status.
//
//	parent ── starts itself again, in a session of its own ──> child: joins, configures, binds
//	   |<──────────── status and message, one packet ────────────┘ then lets go of the standard streams
//	exit
//
// # Differences
//
// The host's addresses and routes are followed while it runs (hostWatch), which the original does not do. Where "auto" is
// asked for, both sides are looked at each second for what listens there (follower); what we have opened ourselves on one
// side is not taken for a server to be opened on the other.
package main
