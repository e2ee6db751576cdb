// Package userns makes user namespaces, or joins existing ones, runs a command in them, and reaps every process of the
// sandbox, all without privilege on the host.
//
// # Theory of operation
//
// What needs a capability is done by a helper process, init: this same binary, executed again inside the namespaces. It sends
// the results, file descriptors mostly, to its caller, the supervisor, which never enters the namespaces. What init does to the
// network is in package netns.
//
//	supervisor                                            init
//	  clone(USER|NET|NS|UTS|IPC[|PID]), all capabilities ambient, execve(/proc/self/exe)
//	  uid_map, gid_map | newuidmap, newgidmap
//	  -- setup{network,link,files,...} ----------------->  mounts, host name, lo, link, addresses, routes
//	  <- ready{kind,offloads,refused,warnings} + link fd -
//	     | failed{op,errno,text,hint}
//	  -- run{argv,env,dir} + stdin, stdout, stderr ----->  fork, exec
//	  <- started{pid} | failed{...,code 125|126|127} ----
//	  -- signal{n} ------------------------------------->  kill(CMD, n)
//	  <- done | failed{...} -----------------------------
//	  -- files{...} ------------------------------------>  rewrites resolv.conf and hosts in place
//	  <- done | failed{...} -----------------------------
//	  -- relink{addresses,routes,gateways} ------------->  netns.Relink: changes those of the uplink
//	  <- ready{warnings} | failed{...} ------------------
//	  -- pool ------------------------------------------>  netns.ServePool: opens sockets on request
//	  <- pool-ready + socket pair | failed{...} ---------
//	  -- listen{proto,ports} --------------------------->  netns.ListenLoopback: sockets on lo
//	  <- listening{errnos} + fds | failed{...} ----------
//	  -- redirect{uplink,ipv6} ------------------------->  netns.NewRedirect: TPROXY redirect of TCP
//	  <- redirected + 4 or 5 fds | failed{...} ----------
//	  -- forward --------------------------------------->  its rules for traffic that the namespace forwards
//	  <- done | failed{...} -----------------------------
//	  <- stopped{signal} --------------------------  CMD was stopped; it may be continued
//	  <- exited{code} -----------------------------------  CMD has ended, every descendant is killed and reaped
//
// They exchange messages over a SOCK_SEQPACKET pair. One request is under way at a time and each has one answer; only stopped and exited
// are sent without a request. A message is JSON of at most inlineMax bytes; a larger one travels in a memfd. An unknown type, a
// message in the wrong direction or with the wrong number of descriptors ends the exchange.
//
// The supervisor's uid is mapped in every IDMap, so that no process changes its uid. init holds its capabilities as ambient
// ones from the clone on, also while its uid is not mapped yet, and removes them from the ambient and inheritable sets before
// it starts the command. A command with uid 0 inside then gets all of them by execve, any other none;
// it can then neither trace init nor use its descriptors.
//
// # Joining
//
// A process with more than one thread may not enter a user namespace (user_namespaces(7)), and a Go program always has
// more than one. A plain fork (no CLONE_VM) is a process of one thread. It makes only raw system calls: setns, unshare, and a
// second clone with CLONE_PARENT: a new pid namespace applies to children only, and CLONE_PARENT makes the child one of the
// supervisor. The child executes a descriptor of our binary (execveat), since /proc inside may be another one.
//
// # Attaching
//
// A namespace that another program made (Target) is entered the same way, without mount and other namespaces: first the user
// namespace that owns it, unless it is ours already, then the network namespace. init then runs no command. It makes the link
// and stays until the supervisor closes its end (EOF).
//
// # States
//
// A Sandbox is configured (Start returned), running (Run returned), ended (Wait returned), closed. Close is allowed in each of
// them, and leaves no process. init follows the same states and ends, from any of them, when it reads EOF, which is also the
// case when the supervisor is killed.
//
// # What ends what
//
//   - CMD ends: init kills what is left of its descendants, reports the exit code, and exits. init is a child subreaper, so that
//     a daemon in a session of its own is still a descendant.
//   - The supervisor is killed: init reads EOF, kills all descendants and exits. Its parent-death signal is SIGCONT, so that an
//     init that was stopped with its job continues and reads EOF. With a pid namespace of its own the signal is SIGKILL, and the
//     kernel kills the rest.
//   - init is killed: CMD has SIGKILL as its parent-death signal. The supervisor reads EOF; Wait returns an error.
//
// # Terminal
//
// init and CMD stay in the caller's session and process group. init catches and ignores SIGINT, SIGQUIT, SIGHUP and SIGTERM;
// SIGTSTP stops it with the job. A CMD that is stopped alone, in a process group of its own as interactive shells have, is
// reported by stopped, and the supervisor's caller decides about its job. With Command.Terminal CMD leads a session of its own. CMD starts with default dispositions and the caller's signal mask, but SIGHUP and SIGINT stay
// ignored if the caller ignored them (nohup, a background job of a shell).
//
// # Files
//
// Where Config.Files has a text, /etc is covered by a mirror: a read-only tmpfs with the host's entries bind-mounted into it and our
// files in the place of the host's (mirror.go). The host can then do to its files what it likes: the mount points are not its own.
// Directories of the host that hold sockets or files of name services are covered, too. From a second after the start on, a
// goroutine of init follows the host's directories (filewatch.go). docs/decisions/0027-mirror-of-etc.md has the reasons and cases.
//
// # What it may touch
//
// Only namespaces that it made, or that its caller named to join or attach to. On the host's side it writes nothing but the id maps of its
// own child. The host's files are never written: those that differ inside are in file systems of the sandbox's mount namespace.
//
// # Limits
//
//   - Without a pid namespace, an init killed by SIGKILL takes CMD along, but not the daemons that CMD started. With one the
//     kernel kills all.
//   - IDMapAuto reads /etc/subuid and /etc/subgid; ranges known only to a directory service are not seen.
//   - A /proc or /sys that is masked (inside another container) cannot be mounted again: for /sys that is a warning, for the
//     /proc of a pid namespace an error.
//
// # Not here
//
// Links, addresses, routes and rules (package netns), moving packets, deciding about flows, publishing ports, persistent
// namespaces. This package does not use the userspace stack.
package userns
