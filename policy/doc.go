// Package policy judges where the guest may send.
//
// # Theory of operation
//
// Whatever the guest wants to talk to is dialled by a process that lives in the host's network namespace, so an address
// means there what it means to the host: 127.0.0.1 is the host's loopback, and on Linux connect(2) to 0.0.0.0 or to ::
// reaches the host's loopback as well (net/ipv4/route.c, ip_route_output_key_hash_rcu: an unset destination becomes
// INADDR_LOOPBACK; net/ipv6/tcp_ipv6.c and datagram.c do the same for ::). A guest with a raw socket can put any of
// these on its wire. Therefore every flow passes [Policy.Judge] before anything is dialled, and what is dialled is
// [Verdict.Dst], never the address from the wire.
//
// The order of the questions is: is the pair well-formed, is the family on, is the source the guest's, is the protocol
// on, is the destination one that was given a meaning of its own ([Config.Special]), is it the gateway, is the destination of a closed kind (in any spelling), is it in the guest's own subnet.
// What is left is allowed, the host's own addresses on its real links included: what listens on them or on 0.0.0.0
// answers, as it does to a Docker container.
//
// # Spellings
//
// An IPv6 address can carry an IPv4 one, and a translator or tunnel on the host (CLAT, Jool, sit0) would unwrap it.
// IPv4-mapped (::ffff:0:0/96) and everything else in ::/8 but the two NAT64 prefixes is closed altogether: it is not for
// the wire (RFC 4291, 2.5.5; RFC 4038, 4.2). The forms that are, NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056),
// Teredo (RFC 4380) and ISATAP (RFC 5214), are closed when an IPv4 address inside is.
//
// # Answers
//
// A destination that only a forged frame can carry, and every multicast or broadcast, is dropped silently (RFC 1122,
// 3.2.2 forbids an answer). A destination the guest's kernel sends to in good faith gets an answer, so that the caller
// fails at once instead of waiting for a timer: a reset, or an ICMP error.
//
// # Limits and non-goals
//
// A verdict depends on nothing but its arguments and the Config; there is no state, no lookup and no clock. DNS and
// DHCP to the gateway, echo to the gateway and neighbour discovery are the stack's, and are taken before policy. Egress
// rules by name or by CIDR are another layer, to be asked after this one.
package policy
