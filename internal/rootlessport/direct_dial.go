package rootlessport

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

const (
	// stockPause is how long a client waits for a socket when all in stock are used up, again and again up to
	// stockPatience; a batch takes a fraction of it.
	stockPause    = time.Millisecond
	stockPatience = 500 * time.Millisecond
	// plainAfter is how long a transparent socket may go without an answer before a plain one tries as well: a little more
	// than a kernel waits before it sends its SYN again, so that a server which is busy for a moment sees its client.
	plainAfter = 1200 * time.Millisecond
)

// dialling is a client whose connection inside did not come about at once. States: one attempt; from plainAfter on two,
// unless the first was plain already; then one has succeeded and is joined with the client, or the client is reset.
type dialling struct {
	l     *listener
	host  int // the client's socket
	dst   netip.AddrPort
	tries []*attempt // under way; guarded by d.mu
	timer *time.Timer
}

// attempt is one connect.
type attempt struct {
	q     *dialling
	fd    int
	token int32
	plain bool
}

// serve connects a client, whose socket is host, to the server inside. Refused inside is a reset outside.
func (l *listener) serve(host int, client netip.AddrPort) {
	d := l.d
	src, dst := d.ends(client, l.port.ChildPort)
	d.mu.Lock()
	plain := time.Now().Before(l.plainUntil)
	d.mu.Unlock()
	fd, done, err := d.connect(src, dst, plain)
	if (err == unix.EADDRNOTAVAIL || err == unix.EADDRINUSE) && src.IsValid() {
		// A client may use one port for two that are published, and two that are shown as the gateway the same one.
		fd, done, err = d.connect(netip.AddrPortFrom(src.Addr(), 0), dst, plain)
	}
	switch {
	case err != nil:
		d.log.Debug("the container did not accept", "port", l.port.HostPort, "err", err)
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

// connect starts a connection inside: from src, or from wherever the kernel likes if that is invalid or the socket plain.
// Nearly always it ends at once.
func (d *direct) connect(src, dst netip.AddrPort, plain bool) (fd int, done bool, err error) {
	for end := time.Now().Add(stockPatience); ; d.pause(stockPause) {
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
		err = unix.ECONNREFUSED // connected to itself, as nobody listens (RFC 9293 3.5)
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
		q.timer = time.AfterFunc(dialTimeout, q.late)
	} else {
		q.timer = time.AfterFunc(plainAfter, q.second)
	}
}

// try watches an attempt, or closes it. d.mu is held.
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

// second is called when the transparent socket has had no answer: rules of the container's (its own DNAT, marks) may lead
// what has our mark astray, or its address has gone. A plain socket goes the way that any of the container's does.
func (q *dialling) second() {
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
		q.won(fd)
	default:
		q.timer = time.AfterFunc(dialTimeout, q.late)
		q.try(fd, true)
	}
}

// late is called when nothing has come of it.
func (q *dialling) late() {
	d := q.l.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.dials[q]; there {
		q.end(nil)
		rawsock.Reset(q.host)
	}
}

// Ready is called when the connect has ended.
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
		q.won(a.fd)
	default:
		q.end(a)
		q.l.row.Store(0)
		d.join(q.host, a.fd)
	}
}

// won joins the client with a plain socket that was heard where a transparent one was not. d.mu is held.
func (q *dialling) won(fd int) {
	q.end(nil)
	if q.l.row.Add(1) >= plainRow {
		q.l.row.Store(plainRow - 1) // one that tries again decides for the next time
		q.l.plainUntil = time.Now().Add(plainFor)
		q.l.d.log.Info("a published port is served without the addresses of its clients: rules in the container are in the way", "port", q.l.port.HostPort)
	}
	q.l.d.join(q.host, fd)
}

// end forgets the client, and every attempt but one. d.mu is held.
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
