// Package rootlessnet gives a command its own network without any privilege.
//
// Run, called by an ordinary user, makes a user and a network namespace with a link device in it. The calling process holds
// the other end of the link and is the command's gateway: a userspace TCP/IP stack translates outgoing connections into
// sockets of the host, and forwards the host's published ports to the command.
//
//	code, err := rootlessnet.Run(ctx, rootlessnet.Config{
//		Argv:    []string{"python3", "-m", "http.server", "80"},
//		Publish: []string{"8080:80"},
//		Stdout:  os.Stdout, Stderr: os.Stderr,
//	})
//
// # Packages
//
// This package is the public API and nothing else: its types are aliases, its functions call the packages that do the work.
// Package plan resolves a Config into a plan: it fills in defaults, finds contradictions, and chooses addresses that collide
// with nothing on the host, before anything is created. Package gateway assembles the network of one sandbox. Package
// sandbox runs it. Port specs are read by Docker's own parser, and where Docker has words for a mistake, the error has the
// same text.
//
// # States
//
// A sandbox is created (state directory, listeners bound), configured (namespaces, link), running, lingering (its command
// has ended, sandboxes that joined its network have not), closed. A failure before running undoes what was made.
//
// # Attaching
//
// Attach does the same for a network namespace that another program made. It returns a Sandbox, on which ports can be
// published and which can be closed. The Sandbox ends by itself with the namespace.
//
// # Embedding
//
// Run and Attach start the calling program a second time, inside the new namespaces. The initialisation of package sandbox,
// which this package imports, recognises the second start and never returns there. A program that embeds this package
// needs to do nothing for that, except that init functions of packages that are initialised earlier must not have visible
// effects.
//
// # Limits
//
// Linux only. TCP, UDP and ICMP echo; no SCTP. An ordinary user cannot bind a published port below
// net.ipv4.ip_unprivileged_port_start.
package rootlessnet
