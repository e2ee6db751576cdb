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
	fd, far := wire(t)
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
	none("one shot was asked for")
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
	none("not watched any more")
}

// TestStaleEvent: an event that was taken from the kernel for a descriptor that is watched no more reaches nobody, least of
// all who has its slot now.
func TestStaleEvent(t *testing.T) {
	l := newLoop(t)
	const n = 8
	var fdv [n]int
	var far [n]*net.TCPConn
	for i := range n {
		fdv[i], far[i] = wire(t)
		defer far[i].Close()
		defer unix.Close(fdv[i])
	}
	spare, spareFar := wire(t)
	defer spareFar.Close()
	defer unix.Close(spare)

	// One handler holds the loop up until all descriptors are ready: the next batch of events has them all. The first of
	// them to be called takes the others out, and gives their slots to a descriptor that is silent.
	var wrong atomic.Int32
	var first sync.Once
	done := make(chan struct{})
	tokens := make([]int32, n)
	var silent int32
	hold, held := make(chan struct{}), make(chan struct{})
	gateFD, gateFar := wire(t)
	defer gateFar.Close()
	defer unix.Close(gateFD)
	gate, err := l.Watch(gateFD, unix.EPOLLIN|unix.EPOLLONESHOT, handler(func(uint32) { close(held); <-hold }))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = gateFar.Write([]byte("x"))
	<-held
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
	close(hold)
	<-done
	time.Sleep(50 * time.Millisecond)
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d events of descriptors that were watched no more", n)
	}
	l.Unwatch(spare, silent)
	l.Unwatch(gateFD, gate)
}

// TestPanic: it costs the connection it happened in, is logged, and nothing else.
func TestPanic(t *testing.T) {
	nettest.CheckLeaks(t)
	var log bytes.Buffer
	l, err := NewLoop(slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	fd, far := wire(t)
	defer far.Close()
	defer unix.Close(fd)
	token, err := l.Watch(fd, unix.EPOLLIN|unix.EPOLLONESHOT, handler(func(uint32) { panic("of the test") }))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = far.Write([]byte("x"))

	// In a pair: a slot whose side lost its peer.
	a, b, p, ended := joined(t, l)
	c, d, _, other := joined(t, l)
	l.mu.Lock()
	p.a.peer = nil
	l.mu.Unlock()
	_, _ = a.Write([]byte("x"))
	await(t, ended)
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its other end got %v, want a reset", err)
	}
	carry(t, c, d, pattern(1000))
	carry(t, d, c, pattern(1000))
	await(t, other)
	l.Unwatch(fd, token)
	l.Close()
	if n := strings.Count(log.String(), "panic in a connection"); n != 2 {
		t.Errorf("%d panics logged, want 2:\n%s", n, log.String())
	}
}

// TestClose resets live pairs, in whatever state, calls their ends, and leaves nothing.
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
		case 1: // full
			_ = a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = a.Write(pattern(16 << 20))
		case 2: // half closed
			_ = a.CloseWrite()
		}
	}
	l.Close()
	l.Close() // again
	over.Wait()
	for i, c := range far {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("end %d: %v", i, err)
		}
	}
	fa, a := wire(t)
	defer a.Close()
	defer unix.Close(fa)
	if _, err := l.Join(fa, fa, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Join after Close: %v", err)
	}
	if _, err := l.Watch(fa, unix.EPOLLIN, handler(func(uint32) {})); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
}

// TestJoinFails: the sockets are the caller's still, and nothing is watched.
func TestJoinFails(t *testing.T) {
	l := newLoop(t)
	fd, far := wire(t)
	defer far.Close()
	if _, err := l.Join(fd, -1, nil); err == nil {
		t.Fatal("a pair with half a pair")
	}
	if _, err := l.Join(-1, fd, nil); err == nil {
		t.Fatal("a pair with half a pair")
	}
	other, otherFar := wire(t)
	defer otherFar.Close()
	ended := make(chan struct{})
	if _, err := l.Join(fd, other, func() { close(ended) }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { carry(t, otherFar, far, []byte("hello")) })
	wg.Go(func() { carry(t, far, otherFar, []byte("hello")) })
	wg.Wait()
	await(t, ended)
}
