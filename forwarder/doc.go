// Package forwarder joins the flows of the guest with sockets of the host.
//
// # Streams: theory of operation
//
// Streams is the half for TCP. A connection that the guest opens is judged by the policy, takes a dial slot (a
// destination may hold half of what is free, so a black hole leaves as much again for everybody else), is dialled, and
// only then accepted; what the host's socket was answered is what the guest is answered. A client of a published port
// is connected to the guest from its own address. Then two goroutines move bytes, one a direction:
//
//   - guest to host: netstack's buffers are written to the socket where they lie, under the endpoint's lock, which
//     is why that write never waits;
//   - host to guest: small exchanges by one read into a pooled buffer, bulk from the socket straight into netstack's
//     memory, a frame at a time. An idle connection holds no buffer.
//
// States: both directions open; one ended by FIN, which has crossed, while the other goes on (with keep-alive, since a
// side that waits and one that has vanished look the same); ended. A reset or failure of one side resets the other at
// once, whatever either direction is waiting for: the guest's failure wakes the waits on the socket, and while a
// direction waits for the guest somebody watches the socket.
//
// # Datagrams: theory of operation
//
// Datagrams is the half for UDP and ICMP echo. It is one table and one reader.
//
//   - A flow is a pair (guest address and port, remote address and port) as the guest sees it; for echo the
//     identifier stands in the guest's port and the remote's port is 0. The table finds it by that pair for what the
//     guest sends, and by (socket, host-side peer) for what comes back. The two differ where the verdict rewrote the
//     destination (the gateway's port for a named loopback port) or where a client appears as the gateway.
//   - A socket is an unconnected host socket. Outbound there is one for each source of the guest and family, made by
//     the first datagram, so that the guest keeps one address for all remotes (endpoint-independent mapping, RFC 4787
//     4.1). What comes in must belong to a flow: only a remote the guest has sent to, address and port, is heard
//     (address and port-dependent filtering, as nf_conntrack does). A published port is one socket for all its
//     clients; an answer of the guest finds its flow in the same table, before an outbound one would be made. An
//     echo identifier is one ping socket.
//   - Sending happens on the goroutine of the caller, the stack's receive path: look up, one non-blocking sendmsg, and
//     nothing is allocated. Policy is asked when a flow is made; an allowed verdict is kept in the flow. A denied
//     datagram leaves no entry behind (a guest cannot fill the table with them): it is judged, counted and answered
//     each time.
//   - One goroutine, or whoever of its group looks (internal/spin), waits in epoll for every socket and reads with
//     recvmmsg into one set of buffers, so an idle socket costs a table entry and no stack or buffer: less than half of
//     what a goroutine for each would take, see
//     BenchmarkIdleMappings.
//   - Bursts stay whole: a train from the guest leaves by one sendmsg with UDP_SEGMENT, a train received with UDP_GRO
//     is written to the guest as one, and so is what one sender's datagrams read by one call have in common. Where the
//     host's link takes no train, or its datagrams must be fragmented, they leave singly by one sendmmsg. Each lost
//     datagram of a train is counted; a full socket drops the rest of it at once.
//
// # Loopback: theory of operation
//
// Loopback joins two loopbacks: what is sent to a named port of the one goes to a port of the other. One event loop accepts,
// connects, joins by package splice and carries datagrams; the sockets on one side belong to the guest's namespace and were
// made there. Nothing is judged: to name a port is the permission, and no other port is listened on. A server that does not
// answer on the loopback address of the client's family is tried on the other.
//
// # Errors
//
// IP_RECVERR puts every ICMP error about what we sent in the socket's error queue, with its type, code, MTU and the
// router that sent it; it goes to the guest as it is, so refused is refused and traceroute works. What the host's
// kernel answers at once (no route, denied by a filter, larger than the path's MTU) becomes the ICMP error a router
// would have sent. A pending error of the socket is also returned by an unrelated send; such a send is tried once
// again, so that nobody pays for another flow's error.
//
// DF of a UDP datagram is kept as far as it concerns the path: one that fits the host's link but not the path as the
// host has learnt it is answered with the path's MTU. One that is larger than the host's link itself is fragmented by
// the host's kernel, the first one already: that the guest's link has a larger MTU is our doing, and a Linux guest
// marks every datagram that fits its link. The link's MTU is looked up when a send fails for its size, and remembered
// in the flow for some seconds. An echo request with DF is answered in both cases: ping is how people measure this.
//
// Without permission for ping sockets an echo request is answered with "administratively prohibited". No echo reply
// is ever made up.
//
// # States of a flow
//
// unreplied (one direction seen, 30 s) -> assured (both directions, 180 s) -> gone. Echo flows live 30 s. The values
// are those of nf_conntrack (nf_conntrack_udp_timeout, _stream, nf_conntrack_icmp_timeout). An outbound socket is
// closed with its last flow. Timeouts are applied by a sweep each few seconds, so they may be exceeded by that much.
//
// # Limits
//
// Outbound sockets, flows of one socket and flows altogether are capped; at a cap the one idle for longest goes. The
// sockets' cap is a share of RLIMIT_NOFILE, so that TCP always finds descriptors. When there are none left anyhow, the
// oldest socket is given up and the new one tried once more. ICMP errors to the guest are limited in rate (RFC 1812
// 4.3.2.8, RFC 4443 2.4(f)).
//
// The source port of the guest is kept on the host where it is free and lies in the range from which the kernel gives
// ports to any program (net.ipv4.ip_local_port_range). MASQUERADE keeps others too, but it does not occupy the host's
// port by that; a guest must not be able to keep a service of the host from its port.
//
// A program that probes the path with datagrams larger than the host's link finds that they arrive, in fragments. With
// the guest's MTU set to that of the host's link nothing is larger.
//
// # Non-goals
//
// A remote is never sent an ICMP error: an ordinary user cannot. IP options and IPv6 extension headers do not cross. A
// datagram that comes in with TTL 1 reaches the guest with TTL 1. A client that talks from one port to two addresses
// of a published socket is one flow, answered from the address it used last.
package forwarder
