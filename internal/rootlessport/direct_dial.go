package rootlessport

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

const (
	// poolPause is the time between two attempts to take a socket from an empty pool, for poolPatience in all; a batch of
	// sockets arrives in a fraction of it.
	poolPause    = time.Millisecond
	poolPatience = 500 * time.Millisecond
	// plainAfter is how long a transparent socket waits for an answer before a plain socket is tried as well: a little more than
	// the kernel waits before it sends the SYN again (1 s), so that a server that is busy for a moment sees its client's address.
	plainAfter = 1200 * time.Millisecond
)

// dialling is a client whose connection inside is not established at once. States: one attempt; after plainAfter two, unless the
// first is by a plain socket; then either one has succeeded and is joined with the client, or the client is reset.
type dialling struct {
	l     *listener
	host  int // the client's socket
	dst   netip.AddrPort
	tries []*attempt // under way; guarded by d.mu
	timer *time.Timer
}

// attempt is one connect under way.
type attempt struct {
	q     *dialling
	fd    int
	token int32
	plain bool
}

// serve connects a client, by its socket host, to the server inside. If that refuses, the client is reset.
func (l *listener) serve(host int, client netip.AddrPort) {
	d := l.d
	src, dst := d.ends(client, l.port.ChildPort)
	d.mu.Lock()
	plain := time.Now().Before(l.plainUntil)
	d.mu.Unlock()
	fd, done, err := d.connect(src, dst, plain)
	if (err == unix.EADDRNOTAVAIL || err == unix.EADDRINUSE) && src.IsValid() {
		// One client may use one source port for two published ports, and two clients with the gateway's address the same port.
		fd, done, err = d.connect(netip.AddrPortFrom(src.Addr(), 0), dst, plain)
	}
	switch {
	case err != nil:
		d.log.Debug("the connection to the container failed", "port", l.port.HostPort, "err", err)
		rawsock.Reset(host)
	case done:
		if !plain {
			l.row.Store(0)
		}
		d.join(host, fd)
	default:
		l.wait(host, fd, dst, plain)
	}
}

// connect starts a connection inside: from src, or from an address that the kernel chooses if src is invalid or the socket plain.
// done says that it is established already, which is nearly always so.
func (d *direct) connect(src, dst netip.AddrPort, plain bool) (fd int, done bool, err error) {
	for end := time.Now().Add(poolPatience); ; d.pause(poolPause) {
		fd, err = d.get(dst.Addr().Is6(), plain)
		if err == nil {
			break
		}
		if d.ctx.Err() != nil || time.Now().After(end) {
			return -1, false, err
		}
	}
	if plain {
		rawsock.NoDelay(fd)
	} else if src.IsValid() {
		err = rawsock.Bind(fd, src)
	}
	if err == nil {
		if done, err = rawsock.ConnectState(fd, dst); err == nil && !done {
			done, err = rawsock.ConnectState(fd, dst)
		}
	}
	if err == nil && done && (plain || !src.IsValid() || src.Addr() == dst.Addr()) && rawsock.LocalAddr(fd) == dst {
		err = unix.ECONNREFUSED // it connected to itself, by simultaneous open (RFC 9293 3.5), since there is no server
	}
	if err != nil {
		rawsock.Reset(fd)
		return -1, false, err
	}
	return fd, done, nil
}

func (d *direct) join(host, inside int) {
	if _, err := d.loop.Join(host, inside, nil); err != nil {
		rawsock.Reset(host)
		rawsock.Reset(inside)
	}
}

func (l *listener) wait(host, fd int, dst netip.AddrPort, plain bool) {
	d := l.d
	q := &dialling{l: l, host: host, dst: dst}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !q.try(fd, plain) {
		rawsock.Reset(host)
		return
	}
	d.dials[q] = struct{}{}
	if plain {
		q.timer = time.AfterFunc(dialTimeout, q.timeOut)
	} else {
		q.timer = time.AfterFunc(plainAfter, q.retryPlain)
	}
}

// try waits for fd to connect; if it cannot, it closes fd. d.mu is held.
func (q *dialling) try(fd int, plain bool) bool {
	a := &attempt{q: q, fd: fd, plain: plain}
	err := error(net.ErrClosed)
	if q.l.d.dials != nil {
		a.token, err = q.l.d.loop.Watch(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, a)
	}
	if err != nil {
		rawsock.Reset(fd)
		return false
	}
	q.tries = append(q.tries, a)
	return true
}

// retryPlain is called when the transparent socket has no answer. Rules in the container (its own DNAT, marks) may route the
// answers with our mark elsewhere, or the client's address is unreachable from it. A plain socket is routed like any of the
// container's.
func (q *dialling) retryPlain() {
	d := q.l.d
	fd, done, err := d.connect(netip.AddrPort{}, q.dst, true)
	d.mu.Lock()
	defer d.mu.Unlock()
	_, there := d.dials[q]
	switch {
	case !there:
		if err == nil {
			rawsock.Reset(fd)
		}
	case err != nil:
		q.end(nil)
		rawsock.Reset(q.host)
	case done:
		q.joinPlain(fd)
	default:
		q.timer = time.AfterFunc(dialTimeout, q.timeOut)
		q.try(fd, true)
	}
}

// timeOut is called after dialTimeout.
func (q *dialling) timeOut() {
	d := q.l.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.dials[q]; there {
		q.end(nil)
		rawsock.Reset(q.host)
	}
}

// Ready is called by the splice loop when the connect has ended.
func (a *attempt) Ready(uint32) {
	q := a.q
	d := q.l.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.dials[q]; !there {
		return
	}
	switch done, err := rawsock.ConnectState(a.fd, q.dst); {
	case err == nil && !done:
		_ = d.loop.Rearm(a.fd, unix.EPOLLOUT|unix.EPOLLONESHOT, a.token)
	case err != nil:
		q.end(nil)
		rawsock.Reset(q.host)
	case a.plain:
		q.end(a)
		q.joinPlain(a.fd)
	default:
		q.end(a)
		q.l.row.Store(0)
		d.join(q.host, a.fd)
	}
}

// joinPlain joins the client with a plain socket, which connected where a transparent one did not. d.mu is held.
func (q *dialling) joinPlain(fd int) {
	q.end(nil)
	if q.l.row.Add(1) >= plainRow {
		q.l.row.Store(plainRow - 1) // after plainFor, one more such client suffices
		q.l.plainUntil = time.Now().Add(plainFor)
		q.l.d.log.Info("the server of a published port does not see the addresses of its clients: rules in the container keep its answers from transparent sockets", "port", q.l.port.HostPort)
	}
	q.l.d.join(q.host, fd)
}

// end removes the client from the dials and closes every attempt but one. d.mu is held.
func (q *dialling) end(but *attempt) {
	delete(q.l.d.dials, q)
	q.drop(but)
}

func (q *dialling) drop(but *attempt) {
	q.timer.Stop()
	for _, a := range q.tries {
		q.l.d.loop.Unwatch(a.fd, a.token)
		if a != but {
			rawsock.Reset(a.fd)
		}
	}
	q.tries = nil
}
