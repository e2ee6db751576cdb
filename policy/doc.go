// Package policy decides which destinations the guest may reach.
//
// # Theory of operation
//
// Every flow of the guest is dialled by a process in the host's network namespace, so an address has the meaning it has on the
// host: 127.0.0.1 is the host's loopback, and on Linux connect(2) to 0.0.0.0 or :: reaches the host's loopback as well
// (net/ipv4/route.c, ip_route_output_key_hash_rcu: an unset destination becomes INADDR_LOOPBACK; net/ipv6/tcp_ipv6.c and
// datagram.c do the same for ::). A guest with a raw socket can send packets to any of these addresses. Therefore
// [Policy.Judge] decides about every flow before anything is dialled, and the address that is dialled is [Verdict.Dst], never
// the one in the guest's packet.
//
// Judge checks in this order: the address pair is well-formed; the address family is on; the source is one of the guest's; the
// protocol is on; the destination is special ([Config.Special]); it is a gateway; it is of a closed kind, in any notation; it is in
// the guest's own subnet. Everything else is allowed, including the host's own addresses on its network interfaces: a service that
// listens on them or on 0.0.0.0 is reachable, as it is from a Docker container. A gateway's address stands for the host: it leads to
// the host's loopback on the ports of [HostLoopback], and on all others to the host's address ([Config.Host4], [Config.Host6]),
// which the caller hands over and replaces when it changes.
//
// # IPv4 addresses inside IPv6 addresses
//
// An IPv6 address can contain an IPv4 address, and a translator or tunnel on the host (CLAT, Jool, sit0) would extract it.
// IPv4-mapped addresses (::ffff:0:0/96) and the rest of ::/8 except the two NAT64 prefixes are closed, as they must not appear in
// packets (RFC 4291, 2.5.5; RFC 4038, 4.2). NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380) and ISATAP (RFC 5214)
// addresses are closed if an IPv4 address in them is closed.
//
// # Answers to the guest
//
// Datagrams to multicast groups of applications are allowed; see judgeGroup. Packets to destinations that a guest's kernel never
// sends to, and all other multicast and broadcast, are dropped silently (RFC 1122, 3.2.2 forbids an answer to the latter). For all other closed destinations the guest gets a reset or an ICMP error, so
// that its program fails at once instead of waiting for a timeout.
//
// # Limits and non-goals
//
// A verdict depends on the arguments and the Config only: there are no lookups and no clock. DNS and DHCP to the gateway, echo
// requests to the gateway, and neighbour discovery are handled by package stack and its callers before policy. Egress rules by
// name or prefix are not part of this package.
//
// # Concurrency and imports
//
// A Policy is immutable, and a Live replaces it atomically; there are no locks. The package imports the standard library only.
package policy
