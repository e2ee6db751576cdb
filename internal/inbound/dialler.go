package inbound

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/rawsock"
	"rootlessnet/splice"
)

// Dialler waits for connects that did not end within the first call. Safe for concurrent use.
type Dialler struct {
	loop *splice.Loop
	n    atomic.Int64 // clients that wait

	mu      lockrank.Mutex
	waiting map[*Client]struct{} // guarded by mu; nil when closed
}

// Client is an accepted connection that waits for a connect. The owner fills in the exported fields before Wait.
type Client struct {
	// Socket is the accepted socket of the client; the Dialler does not use it, except to reset it in Close.
	Socket int
	// Connected takes over fd, which is connected to the server at dst. It is called in the loop's handler run.
	Connected func(fd int, dst netip.AddrPort)
	// Failed is called when a connect to dst has failed; all other connects of the client have been ended by then.
	Failed func(dst netip.AddrPort, err error)
	// Late is called when the patience given to Wait or Add has passed; it may be nil. The client continues to wait.
	Late func()

	timer    *time.Timer // guarded by Dialler.mu
	attempts []*attempt  // guarded by Dialler.mu
}

// attempt is one connect that has not ended.
type attempt struct {
	d     *Dialler
	c     *Client
	fd    int
	dst   netip.AddrPort
	token int32
}

// NewDialler returns a Dialler that waits by loop. It must be closed before the loop.
func NewDialler(loop *splice.Loop) *Dialler {
	d := &Dialler{loop: loop, waiting: map[*Client]struct{}{}}
	d.mu.SetRank(lockrank.InboundDialler)
	return d
}

// Len is the number of clients that wait.
func (d *Dialler) Len() int { return int(d.n.Load()) }

// Wait waits for the connect of fd to dst on behalf of c, which has no connect yet. After patience, unless it is 0,
// c.Late is called once. The Dialler owns fd until it calls Connected; on an error it has closed fd.
func (d *Dialler) Wait(c *Client, fd int, dst netip.AddrPort, patience time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == nil {
		unix.Close(fd)
		return net.ErrClosed
	}
	if err := d.watch(c, fd, dst); err != nil {
		return err
	}
	d.setPatience(c, patience)
	d.waiting[c] = struct{}{}
	d.n.Add(1)
	return nil
}

// Add has c wait for one more connect, with its own patience. It closes fd and returns false where c does not wait any
// more, or where fd cannot be watched; the patience begins even then, as c waits on for its other connects.
func (d *Dialler) Add(c *Client, fd int, dst netip.AddrPort, patience time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, waits := d.waiting[c]; !waits {
		rawsock.Reset(fd)
		return false
	}
	d.setPatience(c, patience)
	return d.watch(c, fd, dst) == nil
}

// watch begins an attempt, or closes fd. mu is held.
func (d *Dialler) watch(c *Client, fd int, dst netip.AddrPort) (err error) {
	a := &attempt{d: d, c: c, fd: fd, dst: dst}
	if a.token, err = d.loop.Watch(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, a); err != nil {
		rawsock.Reset(fd)
		return err
	}
	c.attempts = append(c.attempts, a)
	return nil
}

// setPatience has c.Late called after patience, in place of any earlier time. mu is held.
func (d *Dialler) setPatience(c *Client, patience time.Duration) {
	if patience <= 0 {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = time.AfterFunc(patience, func() { d.late(c) })
}

func (d *Dialler) late(c *Client) {
	d.mu.Lock()
	_, waits := d.waiting[c]
	d.mu.Unlock()
	if waits && c.Late != nil {
		c.Late()
	}
}

// Take ends every connect of c and removes c from the Dialler. It returns false if a connect of c has ended already or the Dialler is closed: the
// caller must then not use the client's socket.
func (d *Dialler) Take(c *Client) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLocked(c, nil)
}

// endLocked removes c and closes the socket of each of its attempts but one.
func (d *Dialler) endLocked(c *Client, but *attempt) bool {
	if _, waits := d.waiting[c]; !waits {
		return false
	}
	delete(d.waiting, c)
	d.n.Add(-1)
	if c.timer != nil {
		c.timer.Stop()
	}
	for _, a := range c.attempts {
		d.loop.Unwatch(a.fd, a.token)
		if a != but {
			rawsock.Reset(a.fd)
		}
	}
	c.attempts = nil
	return true
}

// Ready is called by the loop when the connect has made progress.
func (a *attempt) Ready(uint32) {
	d := a.d
	d.mu.Lock()
	if _, waits := d.waiting[a.c]; !waits {
		d.mu.Unlock()
		return
	}
	done, err := rawsock.ConnectState(a.fd, a.dst)
	switch {
	case err == nil && !done: // the event is older than the wait
		_ = d.loop.Rearm(a.fd, unix.EPOLLOUT|unix.EPOLLONESHOT, a.token)
		d.mu.Unlock()
	case err != nil:
		d.endLocked(a.c, nil)
		d.mu.Unlock()
		a.c.Failed(a.dst, err)
	default:
		d.endLocked(a.c, a)
		d.mu.Unlock()
		a.c.Connected(a.fd, a.dst)
	}
}

// Close resets every client that waits, and returns how many. Wait fails afterwards.
func (d *Dialler) Close() (reset int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	reset = len(d.waiting)
	for c := range d.waiting {
		d.endLocked(c, nil)
		rawsock.Reset(c.Socket)
	}
	d.waiting = nil
	return reset
}
