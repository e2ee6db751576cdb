// Package spin lets those who wait for descriptors look for a moment before they sleep.
//
// # Theory of operation
//
// To be woken costs 10 to 60 µs, for the one who wakes and for the one who is woken; an answer on the same machine takes
// less. So in an exchange to and fro whoever has done his part looks again for a short while. But he who looks holds the
// processor, and what comes next may be for another: the request comes by the link, its answer by a socket, the next
// client by a listener. Looking at one's own descriptors only makes the others late, and the exchange slower than with
// everybody asleep. Therefore those who take part in the same exchanges form a Group, an epoll(7) set of everything that
// any of them waits for, and whoever looks does the turn of the one for whom something is there: to hand it over would
// take Go's scheduler and its poller, as long as many a turn.
//
//	Run ── Go's poller ── own turn ──► look: nothing for 40 µs ─► Go's poller
//	                                    ▲ │ something
//	                                    └─┴─ the turn of whose it is
//
// A turn is done by one goroutine at a time, under the Member's own lock, but by any of the Group's. The one whose it is
// may be told by Go's poller as well, and finds nothing; or he is not told, as there is nothing any more when the poller
// looks. So what a turn finds out once and for all (Over) is passed on to him.
//
// # Limits
//
// A Group looks only while its exchanges are quick, and nobody does in bulk: what comes anyway comes in larger pieces to
// one who sleeps, and he who is in bulk does his turns himself. With one processor nobody looks, as whoever could answer
// needs it.
package spin
