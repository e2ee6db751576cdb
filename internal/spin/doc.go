// Package spin lets those who wait for descriptors look for a moment before they sleep.
//
// # Theory of operation
//
// To be woken costs 10 to 60 µs, for the one who wakes and for the one who is woken; an answer on the same machine takes
// less. So in an exchange to and fro whoever has done his part looks again for a short while. But he who looks holds the
// processor, and what comes next may be for another: the request comes by the link, its answer by a socket, the next
// client by a listener. Looking at one's own descriptors only makes the others late, and the exchange slower than with
// everybody asleep. Therefore those who take part in the same exchanges form a Group, an epoll(7) set of everything that
// any of them waits for. A Member looks at all of it, and goes to sleep as soon as something is there for another: Go's
// scheduler, with nothing else to run, asks its own poller at once and without sleeping.
//
// # Limits
//
// A Group spins only while its exchanges are quick, and nobody does in bulk: what comes anyway comes in larger pieces to
// one who sleeps. With one processor nobody spins, as whoever could answer needs it.
package spin
