package splice

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
)

type handler func(events uint32)

func (h handler) Ready(events uint32) { h(events) }

func TestWatch(t *testing.T) {
	l := newLoop(t)
	fd, far := tcpPair(t)
	defer far.Close()
	defer unix.Close(fd)
	events := make(chan uint32, 10)
	token, err := l.Watch(fd, unix.EPOLLIN|unix.EPOLLONESHOT, handler(func(e uint32) { events <- e }))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = far.Write([]byte("x"))
	if e := <-events; e&unix.EPOLLIN == 0 {
		t.Errorf("events %#x", e)
	}
	none := func(when string) {
		t.Helper()
		select {
		case e := <-events:
			t.Errorf("%s: events %#x", when, e)
		case <-time.After(50 * time.Millisecond):
		}
	}
	_, _ = far.Write([]byte("x"))
	none("EPOLLONESHOT")
	if err := l.Rearm(fd, unix.EPOLLIN|unix.EPOLLONESHOT, token); err != nil {
		t.Fatal(err)
	}
	<-events
	if err := l.Rearm(fd, unix.EPOLLIN, token); err != nil {
		t.Fatal(err)
	}
	<-events
	l.Unwatch(fd, token)
	for len(events) > 0 {
		<-events
	}
	_, _ = far.Write([]byte("x"))
	none("after Unwatch")
}

// TestStaleEvent: an event fetched for a descriptor that has been unwatched since is discarded; the descriptor that has its
// slot now does not receive it.
func TestStaleEvent(t *testing.T) {
	l := newLoop(t)
	const n = 8
	var fdv [n]int
	var far [n]*net.TCPConn
	for i := range n {
		fdv[i], far[i] = tcpPair(t)
		defer far[i].Close()
		defer unix.Close(fdv[i])
	}
	spare, spareFar := tcpPair(t)
	defer spareFar.Close()
	defer unix.Close(spare)

	// One handler blocks the loop until all descriptors are ready, so that the next batch holds the events of all. The first
	// handler to be called unwatches the other descriptors and gives a slot of theirs to a descriptor without events.
	var wrong atomic.Int32
	var first sync.Once
	done := make(chan struct{})
	tokens := make([]int32, n)
	var silent int32
	release, blocked := make(chan struct{}), make(chan struct{})
	gateFD, gateFar := tcpPair(t)
	defer gateFar.Close()
	defer unix.Close(gateFD)
	gate, err := l.Watch(gateFD, unix.EPOLLIN|unix.EPOLLONESHOT, handler(func(uint32) { close(blocked); <-release }))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = gateFar.Write([]byte("x"))
	<-blocked
	for i := range n {
		tokens[i], err = l.Watch(fdv[i], unix.EPOLLIN|unix.EPOLLONESHOT, handler(func(uint32) {
			fired := false
			first.Do(func() {
				fired = true
				for j := range n {
					if j != i {
						l.Unwatch(fdv[j], tokens[j])
					}
				}
				silent, err = l.Watch(spare, unix.EPOLLIN, handler(func(uint32) { wrong.Add(1) }))
				close(done)
			})
			if !fired {
				wrong.Add(1)
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = far[i].Write([]byte("x"))
	}
	close(release)
	<-done
	time.Sleep(50 * time.Millisecond)
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d events of unwatched descriptors were delivered", n)
	}
	l.Unwatch(spare, silent)
	l.Unwatch(gateFD, gate)
}

// TestPanic: a panic is logged and resets the connection it happened in; others go on.
func TestPanic(t *testing.T) {
	nettest.CheckLeaks(t)
	var log bytes.Buffer
	l, err := NewLoop(slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	fd, far := tcpPair(t)
	defer far.Close()
	defer unix.Close(fd)
	token, err := l.Watch(fd, unix.EPOLLIN|unix.EPOLLONESHOT, handler(func(uint32) { panic("of the test") }))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = far.Write([]byte("x"))

	// In a pair: a nil peer.
	a, b, p, ended := joined(t, l)
	c, d, _, other := joined(t, l)
	l.mu.Lock()
	p.a.peer = nil
	l.mu.Unlock()
	_, _ = a.Write([]byte("x"))
	await(t, ended)
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the pair's other end got %v, want a reset", err)
	}
	transfer(t, c, d, pattern(1000))
	transfer(t, d, c, pattern(1000))
	await(t, other)
	l.Unwatch(fd, token)
	l.Close()
	if n := strings.Count(log.String(), "panic while forwarding a connection"); n != 2 {
		t.Errorf("%d panics logged, want 2:\n%s", n, log.String())
	}
}

// TestClose: Close resets the remaining pairs, whatever their state, calls their onEnd and leaves no descriptor or goroutine.
func TestClose(t *testing.T) {
	l := newLoop(t)
	var over sync.WaitGroup
	var far []*net.TCPConn
	for i := range 30 {
		a, b, _, ended := joined(t, l)
		far = append(far, a, b)
		over.Add(1)
		go func() { defer over.Done(); <-ended }()
		switch i % 3 {
		case 1: // full buffers
			_ = a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = a.Write(pattern(16 << 20))
		case 2: // half closed
			_ = a.CloseWrite()
		}
	}
	l.Close()
	l.Close() // a second call does nothing
	over.Wait()
	for i, c := range far {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("end %d: %v", i, err)
		}
	}
	fa, a := tcpPair(t)
	defer a.Close()
	defer unix.Close(fa)
	if _, err := l.Join(fa, fa, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Join after Close: %v", err)
	}
	if _, err := l.Watch(fa, unix.EPOLLIN, handler(func(uint32) {})); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
}

// TestJoinFails: after an error the sockets are still the caller's and unwatched, so that they can be joined anew.
func TestJoinFails(t *testing.T) {
	l := newLoop(t)
	fd, far := tcpPair(t)
	defer far.Close()
	if _, err := l.Join(fd, -1, nil); err == nil {
		t.Fatal("Join accepted an invalid descriptor")
	}
	if _, err := l.Join(-1, fd, nil); err == nil {
		t.Fatal("Join accepted an invalid descriptor")
	}
	other, otherFar := tcpPair(t)
	defer otherFar.Close()
	ended := make(chan struct{})
	if _, err := l.Join(fd, other, func() { close(ended) }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { transfer(t, otherFar, far, []byte("hello")) })
	wg.Go(func() { transfer(t, far, otherFar, []byte("hello")) })
	wg.Wait()
	await(t, ended)
}
