// Package splice joins pairs of connected kernel TCP sockets and forwards the data between them. Small messages are copied through
// one buffer; bulk data moves through a pipe by splice(2), without a copy to user space. What the kernel reports about one
// socket is passed on to the other: data, urgent data, FIN in either direction, RST.
//
// # Theory of operation
//
// A Loop owns an epoll(7) set with both sockets of every pair, edge-triggered. The epoll descriptor itself is a member of a
// busy-poll group (internal/spin) and is registered in Go's network poller, so one goroutine sleeps for all pairs, and the
// thread that finds the set ready runs the handlers right away. The handler run of the Loop takes up to maxEvents events and
// serves the pairs one after the other; two goroutines never run it at once.
//
//	events of both sockets (edge-triggered)
//	      │
//	      ▼
//	  Pair: two directions ── small: recv → the Loop's buffer → send
//	                       └─ bulk:  splice → a pipe of the Loop's pool → splice
//
// Edge-triggered events report changes only, so each side remembers whether its socket is readable and writable. A direction
// changes to bulk when a read fills the buffer, and back when splice moves little. During bulk transfer the Loop moderates
// events, as network cards moderate interrupts: it disables EPOLLIN for the source and reads it again after 100 µs
// (moderation.go).
//
// A Loop also watches descriptors of its users (Watch), such as connecting sockets, and calls their Handler.
//
// # States
//
// A direction is open; then at end of file, when the source's FIN has been read; then shut, when everything has been delivered and
// the FIN passed on with shutdown(2). A pair ends normally when both directions are shut, and by a reset of both sockets when
// either of them fails or the Loop is closed. A connection that stays half closed gets a shorter keep-alive time.
//
// A slot of the watch table carries a generation number, which is also in the events. So an event that was fetched before its
// descriptor was unwatched is recognised and discarded, even if the slot or the descriptor number is in use again. A panic in a
// handler is logged and resets the pair it happened in. After Close no handler is called, and every socket of a pair is closed.
//
// # Limits
//
//   - An idle pair costs a struct and its two sockets: no goroutine, no buffer and no pipe.
//   - A direction buffers at most one buffer (64 KiB) or one pipe (1 MiB), and does not read while its destination is full.
//   - It moves at most pumpBudget bytes before other pairs are served.
//   - The pool bounds the number of pipes by mostPipes and by a share of RLIMIT_NOFILE; without a pipe, data is copied.
//   - It does not dial, accept, or decide what may be connected; it uses neither namespaces nor policy.
//
// # Lock order
//
//	spin.Member.mu (held while the Loop's handlers run) → locks taken by Handlers and end callbacks → Loop.mu
//
// Loop.mu guards the watch table and the set of pairs. It is not held while a handler runs, and nothing is locked under it, so a
// caller of the Loop's methods may hold any lock of its own except one that is held while it waits for Close.
//
// # Imports
//
// Of this project only internal/spin (how to wait) and internal/rawsock (how to reset a connection).
package splice
