// Package userns makes and joins the namespaces a command runs in, without any privilege, and looks after the command
// until nothing is left of it.
//
// # Theory of operation
//
// Whatever needs a capability is done by a helper process, init, that is this same binary executed again inside the
// namespaces; the results (file descriptors) are handed out to the caller, the supervisor, which never enters them.
//
//	supervisor                                            init
//	  clone(USER|NET|NS|UTS|IPC[|PID]), all capabilities ambient, execve(/proc/self/exe)
//	  uid_map, gid_map | newuidmap, newgidmap
//	  -- setup{network,link,files,...} ----------------->  mounts, hostname, lo, link, addresses, routes
//	  <- ready{kind,offloads,refused,warnings} + link fd -
//	     | failed{op,errno,text,hint}
//	  -- run{argv,env,dir} + stdin, stdout, stderr ----->  fork, exec
//	  <- started{pid} | failed{...,code 125|126|127} ----
//	  -- signal{n} ------------------------------------->  kill(CMD, n)
//	  <- done | failed{...} -----------------------------
//	  -- files{...} ------------------------------------>  rewrites resolv.conf and hosts in place
//	  <- done | failed{...} -----------------------------
//	  -- relink{addresses,routes,gateways} ------------->  changes those of the uplink
//	  <- ready{warnings} | failed{...} ------------------
//	  -- mint ------------------------------------------>  makes sockets as they are asked for
//	  <- minted + socket pair | failed{...} -------------
//	  -- listen{proto,ports} --------------------------->  sockets on lo
//	  <- listening{errnos} + fds | failed{...} ----------
//	  -- divert{...} ----------------------------------->  the kernel's road
//	  <- diverted + 4 or 5 fds | failed{...} ------------
//	  -- forward --------------------------------------->  the road for what the namespace forwards
//	  <- done | failed{...} -----------------------------
//	  <- exited{code} -----------------------------------  CMD ended, every descendant killed and reaped
//
// The two talk over a SOCK_SEQPACKET pair. One request is under way at a time and each has one answer; exited alone
// comes unasked. A message is JSON of at most inlineMax bytes; a larger one travels in a memfd. An unknown type, a
// message in the wrong direction or with the wrong number of descriptors ends the conversation.
//
// The supervisor's uid is mapped in every IDMap, so nobody changes uid: init holds its capabilities as ambient ones from
// the clone on, also while its uid is not mapped yet, and takes them out of the ambient and inheritable sets before it
// starts the command. A command with uid 0 inside then gets all of them by execve, any other none.
//
// # Joining
//
// A process with more than one thread may not enter a user namespace (user_namespaces(7)), and a Go program always has
// more than one. A plain fork (no CLONE_VM) is a process of one thread; it makes nothing but raw system calls: setns,
// unshare, a second clone with CLONE_PARENT (a new pid namespace holds for children only, and CLONE_PARENT makes that
// child the supervisor's own), then execveat of a descriptor of our binary, since /proc may be another one there.
//
// # Attaching
//
// A namespace that somebody else made (Target) is entered the same way, without the mount and other namespaces: the user
// namespace that owns it, unless that is ours already, then the network namespace. What stands there is init in the role
// of an agent: it makes the link, runs nothing, and stays until EOF.
//
// # States
//
// A Sandbox is configured (Start returned), running (Run returned), ended (Wait returned), closed. Close is allowed in
// each of them and ends with no process left. init follows the same states and goes to its end from each of them when
// the socket reports EOF, which is also what happens when the supervisor is killed.
//
// # What ends what
//
//   - CMD ends: init kills what is left of its descendants, reports, exits. init is a child subreaper, so a daemon that
//     left its session is still a descendant.
//   - The supervisor dies: EOF; init kills all and exits. Its parent-death signal is SIGCONT, so that an init stopped
//     with its job wakes up to see the EOF; with a pid namespace of its own it is SIGKILL, the kernel does the rest.
//   - init dies: CMD has SIGKILL as its parent-death signal. The supervisor sees EOF; Wait fails.
//
// # Terminal
//
// init and CMD stay in the caller's session and process group. init catches SIGINT, SIGQUIT, SIGHUP and SIGTERM and does
// nothing; SIGTSTP stops it with the job. CMD starts with default dispositions, except that SIGHUP and SIGINT ignored by
// the caller (nohup, a shell's background job) stay ignored, and with the signal mask the caller had.
//
// # Limits
//
//   - Without a pid namespace, an init killed by SIGKILL takes CMD along, but not daemons CMD started. With one the
//     kernel kills all.
//   - IDMapAuto reads /etc/subuid and /etc/subgid; ranges known only to a directory service are not seen.
//   - A /proc or /sys that is masked (inside another container) cannot be mounted anew: for /sys that is a warning, for
//     a pid namespace's /proc an error.
//
// # Not here
//
// Moving packets, deciding about flows, publishing ports, persistent namespaces. This package knows nothing of the stack.
package userns
