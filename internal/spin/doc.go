// Package spin adds busy polling to goroutines that wait for file descriptors: after a handler has made progress, its
// goroutine polls for a few microseconds before it sleeps in Go's network poller again.
//
// # Theory of operation
//
// Waking a sleeping thread costs the waker and the woken thread 10 to 60 µs each. In a request-response exchange on one
// machine the next message often arrives sooner than that, so it pays to poll for a short time instead of sleeping.
//
// A goroutine that polls occupies a processor, and the next message of the exchange may arrive on a descriptor that another
// goroutine waits for: the request comes from the link device, the response from a socket, the next client from a listener.
// If each goroutine polled only its own descriptor it would delay the others, and the exchange would be slower than without
// polling. Therefore all descriptors that take part in the same exchanges are members of one Group, which is an epoll(7)
// set. A goroutine that busy-polls watches the whole set and runs the handler of any member that is ready, in place:
// handing the event to the goroutine that normally serves the member would go through Go's scheduler and network poller,
// which takes about as long as the handler itself.
//
//	Member.Run:  sleep in Go's poller ─► run own handler ─► busy-poll the group ─── 40 µs without an event ─► sleep again
//	                                                          ▲             │
//	                                                          └─ run the handler of the ready member
//
// # States
//
// A Member is outside the epoll set until Run starts, then in it until Leave. Its handler is run by one goroutine at a
// time, under the Member's lock, but by any goroutine of the group. Consequently Go's poller may wake the Member's own
// goroutine for an event that another goroutine has already handled, and the handler then returns Idle; or the event is
// consumed before the poller sees it, and the Member's own goroutine stays asleep. A final result (Done) must not be lost that
// way, so the goroutine that obtained it wakes the Member's own one.
//
// # Limits
//
//   - Busy polling starts only when two handler runs in the group follow each other within 100 µs (exchangeGap), and ends
//     after 40 µs without an event (pollTime). After 1 ms in a row (maxPoll) it pauses so that other goroutines can run.
//   - It stops for bulk transfer (Bulk): sleeping lets data accumulate, which is then moved in larger pieces. A member in
//     bulk transfer is served by its own goroutine only.
//   - With one processor NewGroup returns nil and nothing polls: the peer that would answer needs that processor.
//   - Where the group's epoll set cannot be created or extended, everything works as without busy polling.
//
// It is not a general event loop: each Member keeps a goroutine of its own, and there are no timers.
//
// # Lock order
//
//	os.File's read lock (held by RawConn.Read in Run) → Member.mu → Group.mu
//
// Member.mu is held while the handler runs, so it comes before every lock that a handler takes. A goroutine never holds two
// Member.mu: busy polling takes another member's only by TryLock, after its own has been released. A handler must not call Leave
// on its own Member.
//
// # Imports
//
// The standard library and golang.org/x/sys/unix; nothing of this project.
package spin
