// Package doctor tests every feature of the kernel and the system that this project uses, and reports which work.
//
// # Theory of operation
//
// A check is an entry of the catalog (catalog.go): a name, whether sandboxes require it, what does not work without it, and the
// command that usually fixes it. Each check has a probe, a function that uses the feature itself: it clones the namespaces, attaches
// the TAP device, loads the rule, sends the datagram. Kernel versions and configuration files are read only to explain a failure,
// because distributions backport, remove and forbid features.
//
// Probes run in one of two places:
//
//   - host: in this process, as the calling user. Sockets, limits, files.
//   - inside: in a child process, the same binary cloned into new user, network, mount, UTS and IPC namespaces. Each probe that
//     changes the network runs on a thread of its own with a further network namespace, so that its rules and links do not disturb
//     other probes. The kernel removes everything when the child exits.
//
// All probes run concurrently. One that does not answer in time is reported as untried and does not delay the others.
//
//	Run ──┬── host probes (a goroutine each)
//	      ├── child "inside":  user+net+mnt+uts+ipc ── a thread + network namespace for each probe
//	      ├── child "pid":     user+pid+mnt, mounts a procfs
//	      └── child "hold":    user, no id maps; newuidmap and newgidmap are tried on it
//
// A child is recognised by its argv[0]: the program's main must call ProbeMain before it does anything else.
//
// # States of a check
//
// ok (tested, works), missing (the kernel or the system does not have it), denied (it exists, but this user may not use it), untried
// (something that it depends on failed, or it did not answer in time).
//
// # Limits
//
// A run changes nothing outside its namespaces, except that it creates and removes a directory in the runtime directory and sends a
// few datagrams on the host's loopback. The kernel may load modules when their features are used.
//
// A probe that is still running at the end of Run keeps its goroutine until the timeouts of its own system calls. There are no locks.
//
// # Non-goals
//
// The package changes no setting, and it measures no speed.
package doctor
