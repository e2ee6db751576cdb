// Package flow names the flows that cross a gateway and keeps one table of all live flows, whatever datapath carries them.
//
// # Theory of operation
//
// A Key names a flow as the guest sees it: the endpoint that it belongs to, the protocol and both addresses. A datapath
// embeds an Entry in the structure that it keeps for a flow anyway, adds the Entry to the Table when both ends are open and
// removes it when the flow has ended. Entries form a doubly linked list, so adding and removing allocate nothing and take
// the same time however many flows there are: a gateway opens and closes several thousand connections a second.
//
// What changes during a flow (bytes, packets, state) stays with the datapath, which implements the Carrier interface. List
// reads it at the moment of the call; Watch reports each start and each end; Kill ends a flow on behalf
// of an administrator or of a rule.
//
// # Concurrency and lock order
//
// All methods of Table are safe for concurrent use. A datapath may call Add and Remove with its own lock held: the
// table's lock is the inner one. In return the table never calls a Carrier with its own lock held. A Carrier may therefore
// be called for a flow that has been removed a moment ago; Counters then returns the last counters, and Kill does nothing.
//
// # Limits
//
// The table has no cap of its own: each datapath bounds what it carries. A watcher has a buffer; what does not fit is
// counted as lost and never delays a datapath.
//
// The package imports nothing of this project.
package flow
