// Package loopback forwards named ports between the loopbacks of two network namespaces: connections and datagrams to such a
// port of one namespace go to a port of the other.
//
// One event loop accepts, connects, joins by package splice and carries datagrams. The sockets on one side belong to the guest's
// namespace and were opened there. No policy is consulted: only ports that were named
// are listened on. If nothing listens on the loopback address of the client's family, that of the other family is tried.
//
// A Relay is used in two directions: from the guest's loopback to the host's (pasta's -T and -U; no Pool, outbound flows), and
// for clients of published ports on the host's loopback to servers on the guest's (a Pool of sockets inside, inbound flows).
//
// Limits: the share fdbudget.Relay of the descriptors, and maxFlows UDP flows of one Relay. A client for which there is no
// descriptor waits in the backlog; one for which the pool has no socket waits up to two seconds and is then reset.
package loopback
