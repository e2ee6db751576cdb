// Package netns does what has to be done inside a network namespace, with the capabilities over it: link, addresses, routes,
// nftables rules, the TPROXY redirect, and the pool of transparent sockets.
//
// # Theory of operation
//
// Most functions work on the network namespace of the calling process, which is package userns' init, or on that of the calling
// thread. Enter and RunAt bring a thread into another namespace. What the supervisor needs leaves the namespace as file
// descriptors, which the caller passes on: an open socket or device belongs to the namespace in which it was opened, whichever
// process uses it.
//
//	SetUp         lo up, sysctls, the uplink opened and configured: a namespace made for a sandbox
//	Attach        the uplink in a namespace that another program made, and a function that undoes it
//	Relink        other addresses, routes and gateways for the uplink
//	NewRedirect   the TPROXY redirect; AddForwarding extends it to forwarded traffic
//	Pool          open sockets of the namespace, kept by a process outside; ServePool opens them inside,
//	              OpenPoolAt on a thread
//	ListenLoopback  a socket on a port of the namespace's own loopback
//
// # Link
//
// The uplink is a TAP (with or without virtio-net headers), or a veth pair whose far end is alone in a second network namespace
// and is read by a packet socket, for machines on which /dev/net/tun cannot be opened.
//
// # Redirect
//
// TCP connections of the sandbox can take two paths. On the stack path, segments cross the link to the userspace stack. On the
// splice path, the namespace's own kernel ends the connection at a socket of ours, which is joined with a socket of the host
// by splice(2). The redirect is what makes the second path possible:
//
//	SYN of the command  --uplink-->  stack: judged, dialled; the destination answers
//	supervisor re-injects the SYN (Packets, markRedirect)  --lo-->  rule tproxy  -->  listener 192.0.0.8:1 or [100::1]:1
//	segments of the command  --rule out: markRedirect, routed again-->  lo  -->  rule tproxy  -->  the accepted socket
//	segments of the accepted socket (markAccepted)  --policy rule, local route-->  lo  -->  the command's socket
//
// A connection into the namespace takes a transparent socket from the pool, which is bound to the client's address: the server
// sees that address, and its answers carry markTransparent, inherited from the SYN.
//
// # What it owns in a namespace
//
//	firewall marks      0x726e0001 redirect, …3 transparent, …5 forwarded, …9 deliver, 0x726e0011 accepted
//	conntrack marks     0x726e0004 redirected, …6 no socket (forwarded traffic)
//	policy rules        priority 1: the marks redirect, transparent and accepted -> table 0x726e
//	                    priorities 2 and 3: the mark deliver (forwarded traffic)
//	routing table       0x726e: every address is local
//	nftables tables     inet rootlessnet; inet rootlessnet-forward (forwarded traffic)
//	sysctls             lo: accept_local; tcp_fwmark_accept, fwmark_reflect; tcp_congestion_control
//	addresses           the listeners on 192.0.0.8:1 and [100::1]:1, which are also the namespace's lock
//
// Besides it changes the interface of the uplink, the state of lo, and, in a namespace of its own, the sysctls of SetUp. In a
// namespace that another program made, Close, Pool.Close and Attach's restore undo all but the state of lo.
//
// # Failure cases
//
//   - NewRedirect is whole or undone. Without nf_tables (ENOENT, EOPNOTSUPP) or table owners (before Linux 5.12) it fails, and
//     the caller stays with the stack path.
//   - A second redirect, or pool of OpenPoolAt, in the namespace is refused by the listeners' address (EADDRINUSE).
//   - The process is killed: the kernel closes the descriptors and removes the tables with an owner. The policy rules and
//     routes stay in a namespace that continues to exist; without the tables only open connections of ours have their marks, and
//     the next redirect takes them over (EEXIST).
//   - The supervisor ends: descriptors closed, the pool's server reads end of file.
//   - A pool that gets no descriptors (EMFILE, ETOOMANYREFS) or has lost its server runs empty: Get returns ErrPoolEmpty and
//     never waits.
//   - Without IPv6 in the kernel or on the link, the IPv6 parts are left out.
//
// # Not here
//
// Processes and user namespaces (package userns), deciding about connections (the forwarder), frames (package tap). This package
// imports no other of ours, and no userspace stack.
package netns
