// Package splice joins pairs of connected TCP sockets of the kernel. One Loop is an epoll set that serves any number of
// pairs, in turns (internal/spin), one at a time: small exchanges are read and written through one buffer that all pairs
// share, bulk moves through a pipe by splice(2), without a copy. What one socket says in TCP, the other one says too: data,
// urgent data, FIN in either direction, RST.
//
// A pair that is idle costs a struct and its two sockets: no goroutine, no buffer, no pipe.
//
//	events of both sockets (edge-triggered)
//	      │
//	      ▼
//	  Pair: two directions ── small: recv → Loop's buffer → send
//	                       └─ bulk:  splice → pipe of the Loop's pool → splice
//
// The states of a direction: open; ended by the source's FIN, which is passed on after the last byte. A pair ends when
// both directions have, or when either socket fails; then the other is reset.
//
// A Loop sleeps in Go's own poller, as one descriptor, and wakes for events of its set; it also serves whoever Watches a
// descriptor. Its lock guards the table of what is watched, and is not held during calls: handlers may call the Loop, and
// take locks under which others call it. A slot is used again with another generation, so an event of a descriptor that
// was closed in the same round reaches nobody. A panic resets one pair. After Close nothing is called and every socket of
// a pair is closed.
//
// Bounds: what a direction holds is one buffer or one pipe, and it reads nothing while its peer takes nothing; it moves
// some MiB before the others have their turn. The package knows neither namespaces nor
// policy; of this project it imports only how to wait (internal/spin) and how to reset (internal/rawsock).
package splice
