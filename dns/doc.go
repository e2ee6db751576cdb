// Package dns is the resolver on the gateway, to which the guest's /etc/resolv.conf points.
//
// # Theory of operation
//
// The resolver runs in the host's network namespace and can therefore use every resolver that the host can use, including those
// on the host's loopback (systemd-resolved on 127.0.0.53, dnsmasq). It forwards messages unchanged: it parses the header, the
// question and the EDNS record, replaces the ID by a random one, and returns the answer with the client's ID. Unknown record
// types, classes and EDNS options pass through. Only local names ([Config.Names] and localhost) are answered here, and they are
// never forwarded.
//
//	guest --UDP--> ServeUDP --.                          .--> upstream 1 (UDP, then TCP if truncated)
//	                           >-- parse - local name? -<---> upstream 2, if 1 fails or is silent for a second
//	guest --TCP--> ServeTCP --'                          '--> ...
//
// If an upstream answers SERVFAIL, REFUSED or NOTIMP, cannot be reached, or has not answered for a second, the next one is
// queried as well, and the first usable answer wins. An upstream that answered in place of a silent one is queried first for a
// minute. If all fail, the client gets the first upstream's error or SERVFAIL at once, so that it need not wait for its own
// timeouts.
//
// Answers of upstreams are checked: the socket is connected, so that the kernel checks the source; each query has a socket and
// thus a random port of its own; the ID is random; and the question must be the one that was sent. Answers that do not match
// are counted and ignored, and too many of them end the attempt.
//
// # Hostile input
//
// The parser never follows a compression pointer, so there can be no loops, and it allocates for received bytes only, never for
// sizes that a message claims. The numbers of queries in flight, of connections and of queries per connection, and the time a
// connection may take for one message, are bounded by the constants in limits.go. What exceeds them is dropped and counted.
//
// # States
//
// The resolver checks the host's resolv.conf once a second (by stat only) and reads it again if it was changed or replaced.
// Queries in flight continue with the old configuration. [Resolver.Changed] then notifies the owner, which rewrites the guest's
// files. After Close all queries are dropped.
//
// # Limits and non-goals
//
//   - No cache: the host's resolver has one, and a second one could only return outdated answers.
//   - No DNSSEC validation: the related bits pass through.
//   - No zone transfer (answered with REFUSED), no dynamic update or notify (NOTIMP).
//   - sortlist and rotate of resolv.conf are not applied here; options are passed to the guest's libc, which applies them.
//
// # Lock order
//
// Resolver.mu guards closed and additions to the wait group; session.mu serialises the answers on one connection. They are
// never held together, and nothing else is locked under either.
//
// # Imports
//
// The miekg/dns library for names and constants, and the standard library; nothing of this project.
package dns
