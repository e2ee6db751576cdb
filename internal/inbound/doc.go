// Package inbound takes clients from listening sockets of the host and connects each to a server elsewhere: what published
// ports, loopback forwards and the port helper of Podman have in common.
//
//	accept (Listener) -> connect (rawsock.ConnectFrom) -> wait, if need be (Dialler) -> join (splice.Loop)
//
// Nearly every connect ends within the first call, because the server is a neighbour on the same machine. Those that do
// not are the Dialler's: a full backlog, a packet filter in the way, a server on its way up.
//
// # States of a client
//
// accepted -> connected, or waiting -> connected | failed | taken back. A client that waits may have several connects
// under way, of which the first outcome decides: a refusal is the server's word as much as an acceptance. Whoever waits
// long may be given another connect (Add) or be taken back (Take) for another datapath.
//
// # Lock order
//
// Dialler.mu, then the Loop's lock. Callbacks are called with neither held; they may take any lock of their owner.
//
// The package imports splice, spin and rawsock, and no TCP/IP stack: the port helper is a small program.
package inbound
