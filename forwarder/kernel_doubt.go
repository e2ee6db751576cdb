package forwarder

import (
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/stack"
)

const (
	// doubtAfter offers in a row that the guest has not taken up at once, connections take the other road: all outbound ones
	// of the guest's own, all that it forwards, or those to one published port.
	doubtAfter = 3
	// doubtFor is how long. The next one is tried again, and pays for it with a second if nothing has changed.
	doubtFor = time.Minute
	// offerPatience ends before a kernel sends its SYN or SYN-ACK again (RFC 6298 2.1: one second).
	offerPatience = 900 * time.Millisecond
)

// doubt notes that rules of the guest's own, packet filters or masquerading, are in the way of handshakes on lo: each of
// them takes a retransmission, or fails and is left to the other road after one.
type doubt struct {
	row   int
	until time.Time
}

// doubtOf is that about connections like q: rules for what is forwarded are others than those for the guest's own.
// r.mu is held.
func (r *kernelRoad) doubtOf(q *stack.SYN) *doubt {
	if q.TTL == guestTTL {
		return &r.doubt
	}
	return &r.forwardDoubt
}

// now says that the other road is the better one.
func (d *doubt) now() bool {
	return d.row >= doubtAfter && time.Now().Before(d.until)
}

// add notes a handshake that failed, or was late.
func (d *doubt) add(log *slog.Logger) {
	if d.row++; d.row >= doubtAfter && !d.now() {
		d.until = time.Now().Add(doubtFor)
		log.Info("connections that the kernel joins are not completed inside at once, perhaps for rules of nftables there: others go through the userspace stack for a while", "for", doubtFor)
	}
}

// settle notes a handshake, offered at since, that was completed. It was late if the guest was, and not we.
func (d *doubt) settle(log *slog.Logger, fd int, since time.Time) {
	if time.Since(since) > offerPatience {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Total_retrans > 0 {
			d.add(log)
			return
		}
	}
	d.row = 0
}
