// Package inbound takes clients from listening sockets of the host and connects each to a server in another namespace: what published
// ports, loopback forwards and the port helper of Podman have in common.
//
//	accept (Listener) -> connect (rawsock.ConnectFrom) -> wait, if needed (Dialler) -> join (splice.Loop)
//
// Nearly every connect completes within the first call, because the server is on the same machine. The Dialler waits for those
// that do not: the server's backlog is full, a packet filter drops the SYN, or the server does not listen yet.
//
// # States of a client
//
// accepted -> connected, or waiting -> connected | failed | removed. A client that waits may have several connects in
// progress; the first result, success or refusal, ends the others. While a client waits, its owner may start another
// connect (Add), or remove it from the Dialler (Take) to pass it to another datapath.
//
// # Lock order
//
// Dialler.mu, then the Loop's lock. Callbacks are called with neither held; they may take any lock of their owner.
//
// The package imports splice, spin and rawsock, and no TCP/IP stack: the port helper is a small program.
package inbound
