// Package splicetcp is the splice path for TCP, the default one: both ends of a connection are sockets of the kernel, one in
// the host's namespace and one in the guest's, which package splice joins. The userspace stack sees the SYN and nothing else.
//
// # Outbound
//
//  1. The guest's SYN leaves by its link, and the stack shows it to HandleSYN before netstack does anything.
//  2. The flow is decided and the host's side is dialled. Refusals are answered on the link.
//  3. When the host's connection is established, the guest's own SYN is re-injected: written to a packet socket that delivers it on the
//     guest's loopback interface. A rule (TPROXY) redirects it there to a listener of ours that accepts for every address, and
//     the guest's kernel completes the handshake with itself.
//  4. The accepted socket is matched with its request by its addresses, and joined with the host's.
//
// Nearly always all of it happens in one call of HandleSYN.
//
// States of a request: dialling (the host's connect is under way, at most forwarder.DialTimeout; a SYN sent again replaces the
// one that is kept) -> reinjecting, within one call -> joined, or reinjected (at most forwarder.GuestTimeout) -> joined, or
// dropped. A guest that has closed its socket answers the SYN-ACK with a reset; it arrives by the link (HandleReset), and the
// host's connection is reset. A SYN that is sent again after it was re-injected means that the guest's kernel did not get the SYN-ACK, because
// packet-filter rules inside drop it. The request is dropped, and the stack path takes the connection. A SYN that arrives while
// the first one is being re-injected is dropped: it does not mean that the handshake has failed.
//
// # Inbound
//
// A client of a published port is connected by a socket from a pool: opened inside beforehand, transparent (IP_TRANSPARENT), so
// that it can be bound to the client's address. Its mark is inherited by what the server accepts (tcp_fwmark_accept) and
// routes the answers back to it.
//
// # What the path declines
//
// Any connection may be declined at any time; the stack path then takes it:
//
//   - the TTL of the SYN says neither that it is the guest's own (64) nor that it was forwarded (one to four hops less than
//     64, 128 or 255);
//   - it was forwarded, and the namespace cannot be made ready for that (Inside.Forward);
//   - it is a query to the resolver, which is behind the stack;
//   - a circuit breaker is open: several handshakes in a row have failed or were late;
//   - the budget of descriptors has none left for this path;
//   - inbound: the server is of the other family or bound to the uplink, the port is closed, or the pool is empty.
//
// # Security
//
// Root inside can connect to the listeners. A connection that belongs to no request is reset and counted (Stats.Unmatched): a
// connection is joined only if the request for its very addresses and ports was decided and dialled.
package splicetcp
