// Package forwarder decides about each flow that a guest opens (dial, refuse, or answer by the resolver), dials the host's side, and
// chooses the answer to the guest when that fails. It is the part that all datapaths share; the datapaths are the packages below it.
//
//		                        stack (frames <-> flows)
//		                 SYN |        | TCP request      | datagram, echo
//		                     v        v                  v
//		              splicetcp      tcp                udp          loopback
//		                     \        |                  |             (two loopbacks)
//		                      `-------+------ Forwarder -+
//		                   Decide, RefusalOf, StartDial, Attempts, PublishTCP,
//		                   flow.Table, fdbudget.Budget, TCPCounters
//
//	  - tcp is the stack path: TCP connections that end in the userspace stack.
//	  - splicetcp is the splice path, the default for TCP: both ends of a connection are sockets of the kernel. What it
//	    declines, tcp takes.
//	  - udp carries UDP and ICMP echo.
//	  - loopback carries named ports between the loopbacks of two namespaces.
//
// # One decision
//
// Forwarder.Decide is the only place where a flow is judged. It looks up the flow's Endpoint (which guest it belongs to),
// recognises queries for the resolver, consults the endpoint's policy, and returns a Decision: dial this destination, have the
// resolver answer, or refuse in this way for this reason. What the guest is answered, RST or which ICMP error or nothing, is
// one table (refusal.go), for verdicts of the policy and for errors of the host's kernel alike.
//
// When rules or addresses change, Rejudge decides again about every live flow, TCP too, and ends what is not allowed any more.
// A flow that was decided before the change and established after it is caught by StillAllowed.
//
// # One table of flows
//
// Every datapath keeps its open flows in Forwarder.Flows; package flow has the operations.
//
// # Dialling
//
// The host's side is dialled before the guest's handshake is completed, so the guest gets the answer that the host got.
// A destination may have half of the free attempts under way (Attempts), so that one that does not answer leaves as many
// again for the others. Descriptors are taken from one budget (package fdbudget); where there are none, outbound attempts are repeated for
// some seconds, published ports accept nothing for a while, and UDP closes its least recently used socket.
//
// A failed connect is reported with the ICMP error that caused it (IP_RECVERR, ip(7)), which the guest gets unchanged. What the
// host's kernel answers at once (no route, denied by a filter) becomes the error that a router would have sent.
//
// # Published ports
//
// PublishTCP serves the clients of one listener by the first datapath that takes them: loopback for clients on the host's own
// loopback where the plan asks for it, then splicetcp, then tcp, which takes every client. The server inside sees the client's own
// address wherever that is possible (package clientaddr).
//
// # Lock order
//
// From the outside to the inside; no lock is taken while one to the right of it is held.
//
//	inbound.Dialler.mu -> splice.Loop.mu
//	splicetcp.Path.using (read) -> splicetcp.Path.mu -> breaker.mu, splice.Loop.mu, Attempts.mu, flow.Table.mu
//	loopback.Relay.mu -> inbound.Dialler.mu -> splice.Loop.mu
//	loopback.Relay.mu -> flow.Table.mu
//	udp table.mu -> flow.Table.mu
//	udp table.mu -> socket.sendMu or socket.recvMu: never; sockets are closed after table.mu is released
//	tcp.Path.mu: a leaf; the stack's endpoint locks are taken with no lock of this package held
//
// A splice.Loop calls its handlers, an inbound.Dialler its callbacks and a flow.Table its carriers with no lock of their own
// held. The budget and the counters are atomic.
//
// # Limits
//
// TCP, UDP and ICMP echo. No ICMP error is ever sent to a remote: an ordinary user cannot.
package forwarder
