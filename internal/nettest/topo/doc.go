// Package topo makes the topology of end-to-end tests and benchmarks: two network namespaces joined by a veth pair, made and
// owned by an ordinary user.
//
//	      "here"                                   "there"
//	the product, as a user               the test's own servers and clients
//	without any capability
//	     lan0 198.51.100.1/24 ---------------- lan0 198.51.100.2/24
//	          2001:db8:1::1/64                      2001:db8:1::2/64
//	default routes through .2             routes that answer in every way, see Blackhole4 and those after it
//
// # Theory of operation
//
// Enter re-executes the calling program in a user namespace that maps the caller's uid and gid to themselves. There
// it is still that ordinary user, but holds ambient capabilities over the namespaces it makes. What it starts by
// NS.Command has none of them: ambient and bounding set are dropped on the thread that forks. So the product runs as it
// does on a real machine: a plain uid in a network it did not make.
//
// New makes a fresh pair of namespaces; several Topos with the same addresses may exist at the same time. A socket stays
// in the namespace in which it was created, so NS.Listen and NS.Dial only make it on a thread that is inside;
// the result is used from any goroutine.
//
// # Limits
//
// The user namespace maps one uid and one gid, so newuidmap cannot work below it, and files of non-dumpable processes
// below /proc belong to a user that is not mapped. The uid must not be 0.
package topo
