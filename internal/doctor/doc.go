// Package doctor tries everything this project asks of a machine and says what works.
//
// # Theory of operation
//
// A check is a line of the catalog (catalog.go): a name, whether sandboxes need it or only gain by it, what is lost
// without it, and the command that usually mends it. Behind each check stands a probe, a function that does the thing
// itself: it clones the namespaces, attaches the TAP, loads the rule, sends the datagram. Versions and configuration
// files are read only to explain a failure that was seen, because distributions backport, patch out and forbid.
//
// Probes run in one of two places:
//
//   - host: in this process, as the caller. Sockets, limits, files.
//   - inside: in a child that is the same binary cloned into new user, network, mount, UTS and IPC namespaces. Each of
//     its probes runs on a thread of its own that moves to one more network namespace, so that rules and links of one
//     probe cannot disturb another. The kernel removes everything with the child.
//
// All run at the same time. A probe that does not answer in time is reported as untried; it cannot hold up the rest.
//
//	Run ──┬── host probes (a goroutine each)
//	      ├── child "inside":  user+net+mnt+uts+ipc ── a thread + network namespace for each probe
//	      ├── child "pid":     user+pid+mnt, mounts a procfs
//	      └── child "hold":    user, no id maps; newuidmap and newgidmap are tried on it
//
// A child is recognised by its argv[0]; the program's main must give way to ProbeMain before it does anything else.
//
// # States
//
// ok (tried, works), missing (the kernel or the system does not have it), denied (it is there, but this user may not),
// untried (something it stands on failed first, or it did not answer).
//
// # Limits
//
// Nothing outside the namespaces is changed, but for a directory made and removed in the runtime directory and a few
// datagrams on the host's loopback. A module that is not loaded may be loaded by the kernel when it is asked for.
//
// # Non-goals
//
// It mends nothing by itself, and it measures no speed.
package doctor
