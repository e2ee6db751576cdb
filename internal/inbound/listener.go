package inbound

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
)

// Pause is how long a listener rests after an accept that failed (no descriptors, no memory), or while its handler has no
// room: the backlog keeps the clients meanwhile. An accept loop that ends on its first error, or one that tries again at
// once, are the two known ways to get this wrong.
const Pause = 100 * time.Millisecond

// Handler serves the clients of a Listener. Its methods are not called concurrently for one Listener.
type Handler interface {
	// Ready reports whether one more client can be served now. false has the listener rest for Pause.
	Ready() bool
	// Serve takes over a client's socket, which is non-blocking, and says how the handler run went (package spin).
	Serve(fd int, client netip.AddrPort) spin.Result
	// AcceptFailed is called after an accept that failed; the listener rests for Pause.
	AcceptFailed(err error)
}

// Listener accepts the clients of one listening socket of the host.
type Listener struct {
	f       *os.File
	h       Handler
	member  *spin.Member
	resting atomic.Bool
	done    chan struct{}
}

// Listen serves the clients of l by h, and takes l over; it closes l on an error, too. The options that each accepted
// socket shall have must be set on the listener by tune, if that is not nil: the kernel passes them on. group may be nil;
// blocking is set if h.Serve may block, so that only the listener's own goroutine may call it.
func Listen(group *spin.Group, l *net.TCPListener, blocking bool, tune func(fd int), h Handler) (*Listener, error) {
	defer l.Close()
	// A listener of package net gives each connection a keep-alive pace of its own. The copy shares the socket.
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	n := &Listener{f: f, h: h, done: make(chan struct{})}
	member := group.NewMember
	if blocking {
		member = group.NewBlockingMember
	}
	if n.member, err = member(f, n.takeOne); err != nil {
		_ = f.Close()
		return nil, err
	}
	if tune != nil {
		tune(n.member.FD())
	}
	go func() {
		defer close(n.done)
		_ = n.member.Run() // until Close
	}()
	return n, nil
}

// Close stops listening and waits for a handler that is running. Clients that were taken are the handler's.
func (n *Listener) Close() {
	n.member.Leave()
	_ = n.f.Close()
	<-n.done
}

// takeOne accepts one client.
func (n *Listener) takeOne() spin.Result {
	if n.resting.Load() {
		return spin.Idle
	}
	if !n.h.Ready() {
		return n.rest()
	}
	fd, client, err := rawsock.Accept(n.member.FD())
	switch {
	case err == unix.EAGAIN:
		return spin.Idle
	case err != nil:
		n.h.AcceptFailed(err)
		return n.rest()
	}
	return n.h.Serve(fd, client)
}

// rest accepts no clients for Pause.
func (n *Listener) rest() spin.Result {
	n.resting.Store(true)
	time.AfterFunc(Pause, func() {
		n.resting.Store(false)
		n.member.Wake()
	})
	return spin.Idle
}
