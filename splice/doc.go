// Package splice joins pairs of connected TCP sockets of the kernel. One Loop is one goroutine with an epoll set of its
// own that serves any number of pairs: small exchanges are read and written through one buffer that all pairs share,
// bulk moves through a pipe by splice(2), without a copy. What one socket says in TCP, the other one says too: data,
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
// both directions have, or when either socket fails; then the other is reset. The package knows neither namespaces nor
// policy, and imports nothing of this project.
package splice
