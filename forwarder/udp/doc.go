// Package udp forwards UDP datagrams and ICMP echo between a guest and the host, with one table of flows and one reader.
//
// # Theory of operation
//
//   - A flow is a pair (guest address and port, remote address and port) as the guest sees it; for echo the identifier is
//     used as the guest's port and the remote's port is 0. The table finds it by that pair for what the guest sends, and by
//     (socket, peer on the host's side) for what the remote sends. The two differ where the decision rewrote the destination (the
//     gateway's port for a named loopback port) or where a client appears as the gateway.
//   - A socket is an unconnected host socket. Outbound there is one for each source of the guest and family, made by the
//     first datagram, so that the guest keeps one address for all remotes (endpoint-independent mapping, RFC 4787 4.1). What
//     comes in must come from an address to which the guest has sent, or where the endpoint has full-cone filtering or the
//     guest has sent to a multicast group, from anywhere (RFC 4787 5); see filter.go. A published port is one socket for all
//     its clients; an answer of the guest finds its flow in the same table, before an outbound one would be made. An echo
//     identifier is one ping socket.
//   - Sending happens on the goroutine of the caller, the stack's receive path: one lookup, one non-blocking sendmsg, and
//     no allocation. The decision is made once for each flow and kept in it. A denied datagram leaves no
//     entry behind (a guest cannot fill the table with them): it is decided, counted and answered each time.
//   - One goroutine, or another member of its busy-poll group (package spin), waits in epoll for every socket and reads with
//     recvmmsg into one set of buffers, so an idle socket costs a table entry and no goroutine or buffer: less than half of what a
//     goroutine for each would take, see BenchmarkIdleMappings.
//   - GSO batches are kept: a batch from the guest leaves by one sendmsg with UDP_SEGMENT; a batch received with UDP_GRO is
//     written to the guest as one, and so are the consecutive datagrams of one sender that one call has read. Where the
//     host's link takes no batch, or its datagrams must be fragmented, they are sent separately by one sendmmsg. Each lost datagram
//     of a batch is counted; a full socket drops the rest of it at once.
//
// # Clients of published ports
//
// A client is forwarded to the server's address of its own family; see client.go for how one is found that listens in the other
// family only. Where the guest has several addresses of a family, which are copies of the host's, a client is forwarded to the
// one that it asked, and the server may answer from any of them: the client gets the answer from the one that it asked.
//
// # Errors
//
// IP_RECVERR puts every ICMP error about what was sent into the socket's error queue, with its type, code, MTU and the router
// that sent it; it is sent to the guest unchanged, so that refused is refused and traceroute works. What the host's kernel answers at
// once (no route, denied by a filter, larger than the path's MTU) becomes the ICMP error that a router would have sent. A
// pending error of the socket is also returned by an unrelated send; such a send is repeated, so that no datagram is
// lost because of another flow's error.
//
// DF of a UDP datagram is kept as far as it concerns the path: one that fits the host's link but not the path as the host has
// learnt it is answered with the path's MTU. One that is larger than the host's link itself is fragmented by the host's
// kernel, see mtu.go. An echo request with DF is answered in both cases: ping is how people measure this.
//
// Without permission for ping sockets an echo request is answered with "administratively prohibited". An echo reply is never
// forged.
//
// # States of a flow
//
// unreplied (one direction seen, 30 s) -> established (both directions, 180 s) -> ended. The 30 s of a client's flow begin with its
// first datagram, and what it sends does not prolong them. Echo flows live 30 s. An outbound socket
// is closed with its last flow. Timeouts are applied by a sweep each few seconds, so they may be exceeded by that much.
//
// # Limits
//
// Outbound sockets, flows of one socket and flows altogether are capped; at a cap the one idle for longest is closed. When there
// are no descriptors the least recently used socket is closed and the new one tried once more. ICMP errors to the guest are
// limited in rate (RFC 1812 4.3.2.8, RFC 4443 2.4(f)).
//
// The source port of the guest is kept on the host where it is free and lies in the range from which the kernel gives ports to
// any program (net.ipv4.ip_local_port_range). MASQUERADE keeps other ports, too, but a port that it uses can still be bound on
// the host; ours would be occupied, and a guest must not be able to block a port that a service of the host needs.
//
// # Non-goals
//
// IP options and IPv6 extension headers do not cross. A datagram that comes in with TTL 1 reaches the guest with TTL 1. Nothing
// is received for a multicast group. Where the guest has one address of a family, a client that sends from one port to two
// addresses of a published socket is one flow, answered from the address it used last.
package udp
