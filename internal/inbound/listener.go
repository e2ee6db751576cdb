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

// Pause is how long a listener accepts nothing after an accept that failed (no descriptors, no memory), or after its handler
// was not ready. The backlog keeps the clients meanwhile. An accept loop that ended on its first error would stop the port for
// good, and one that tried again at once would use a whole processor.
const Pause = 100 * time.Millisecond

// Handler serves the clients of a Listener. Its methods are not called concurrently for one Listener.
type Handler interface {
	// Ready reports whether one more client can be served now. false: the listener pauses for Pause.
	Ready() bool
	// Serve takes over a client's socket, which is non-blocking, and returns the result of the handler run (package spin).
	Serve(fd int, client netip.AddrPort) spin.Result
	// AcceptFailed is called after an accept that failed; the listener pauses for Pause.
	AcceptFailed(err error)
}

// Listener accepts the clients of one listening socket of the host.
type Listener struct {
	f       *os.File
	h       Handler
	member  *spin.Member
	pausing atomic.Bool
	done    chan struct{}
}

// Listen serves the clients of l by h, and takes l over; it closes l on an error, too. The options that each accepted
// socket shall have must be set on the listener by tune, if that is not nil: the kernel passes them on. group may be nil;
// blocking is set if h.Serve may block, so that only the listener's own goroutine may call it.
func Listen(group *spin.Group, l *net.TCPListener, blocking bool, tune func(fd int), h Handler) (*Listener, error) {
	defer l.Close()
	// A listener of package net sets keep-alive times of its own on each connection. The copy shares the socket.
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

// Close stops listening and waits for a handler that is running. Clients that were passed to the handler stay open.
func (n *Listener) Close() {
	n.member.Leave()
	_ = n.f.Close()
	<-n.done
}

// takeOne accepts one client.
func (n *Listener) takeOne() spin.Result {
	if n.pausing.Load() {
		return spin.Idle
	}
	if !n.h.Ready() {
		return n.pause()
	}
	fd, client, err := rawsock.Accept(n.member.FD())
	switch {
	case err == unix.EAGAIN:
		return spin.Idle
	case err != nil:
		n.h.AcceptFailed(err)
		return n.pause()
	}
	return n.h.Serve(fd, client)
}

// pause accepts no clients for Pause.
func (n *Listener) pause() spin.Result {
	n.pausing.Store(true)
	time.AfterFunc(Pause, func() {
		n.pausing.Store(false)
		n.member.Wake()
	})
	return spin.Idle
}
