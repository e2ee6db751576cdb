// Package dns is the resolver on the gateway: what the guest's /etc/resolv.conf points at.
//
// # Theory of operation
//
// The resolver runs in the host's network namespace, so every resolver the host can use is one it can use, those on the
// host's loopback (systemd-resolved's 127.0.0.53, dnsmasq) included. It forwards messages as they are: it reads the
// header, the question and the EDNS record, replaces the ID by a random one, and hands the answer back with the guest's
// own ID. Record types, classes and EDNS options it has never heard of pass through untouched. Only names it owns
// ([Config.Names], localhost) are answered from here, and those never leave.
//
//	guest --UDP--> ServeUDP --.                         .--> upstream 1 (UDP, again over TCP if truncated)
//	                           >-- parse - own names? -<---> upstream 2, when 1 fails or after a second
//	guest --TCP--> ServeTCP --'                         '--> ...
//
// An upstream that answers SERVFAIL, REFUSED or NOTIMP, that cannot be reached, or that has said nothing for a second
// has the next one asked as well; the first usable answer wins. One that took over from a silent one is asked first for
// a minute. When all fail, the guest is given the first upstream's error, or SERVFAIL, at once, so that its own timers
// do not add up.
//
// Answers from upstreams are checked: the socket is connected (the kernel checks the source), each query has a socket
// and so a random port of its own, the ID is random, the question must be the one asked. Everything else is counted
// and ignored, and a flood of it ends the attempt.
//
// # What hostile input can cost
//
// Parsing never follows a compression pointer, so there are no loops to be caught in, and no allocation is made for
// what a message claims, only for what came. Queries in flight, connections, queries per connection, and the time a
// connection may take for one message are all bounded by constants in limits.go; what is beyond is dropped and counted.
//
// # States
//
// The host's resolv.conf is looked at once a second (stat only) and read again when it was changed or replaced. Queries
// in flight go on with what they started with. [Resolver.Changed] then tells the owner to write the guest's files again.
//
// # Limits and non-goals
//
// No cache: the host's resolver has one, and a second one would only add staleness. No DNSSEC validation: the bits pass
// through. No zone transfers (REFUSED), no dynamic update or notify (NOTIMP). The sortlist and rotate of resolv.conf
// are not ours to act on; its options are passed to the guest, whose libc does.
package dns
