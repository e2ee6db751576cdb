// Package rootlessnet gives a command its own network without any privilege.
//
// An ordinary user's Run makes a user and a network namespace, attaches a link device inside, and is the command's
// gateway on the other end of it by a userspace TCP/IP stack: it translates what goes out and forwards what comes in
// to published ports.
//
//	code, err := rootlessnet.Run(ctx, rootlessnet.Config{
//		Argv:    []string{"python3", "-m", "http.server", "80"},
//		Publish: []string{"8080:80"},
//		Stdout:  os.Stdout, Stderr: os.Stderr,
//	})
//
// # What stands where
//
// Config says what is wanted; its zero value is the default of the rootless-run command. It is resolved into a plan
// (defaults filled in, contradictions found, addresses chosen that collide with nothing on the host) before anything
// is made. Port specs are read by Docker's own parser, and where Docker has words for a mistake, they are ours.
//
// # States
//
// A sandbox is created (state directory, listeners bound), configured (namespaces, link), running, lingering (its
// command is gone, others that joined its network are not), gone. A failure before running undoes what was made.
//
// # Attaching
//
// Attach does the same for a network namespace that somebody else made, and returns a Sandbox to publish ports on and to
// close. It ends by itself with the namespace.
//
// # Embedding
//
// Run and Attach start the program it is part of a second time, inside the new namespaces. The package's initialisation
// recognises that and never returns there, so a program that embeds it needs to do nothing; it must only not do
// visible work in init functions of packages that are initialised earlier.
//
// # Limits
//
// Linux only. TCP, UDP and ICMP echo; no SCTP. A published port below net.ipv4.ip_unprivileged_port_start cannot be
// bound by an ordinary user.
package rootlessnet
