package inbound

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
)

// outcome is the result of a client that has waited.
type outcome struct {
	fd  int // of Connected
	dst netip.AddrPort
	err error // of Failed
}

// waiting is a client with its outcomes.
type waiting struct {
	Client
	outcomes chan outcome
	late     chan struct{}
}

func newWaiting() *waiting {
	w := &waiting{outcomes: make(chan outcome, 4), late: make(chan struct{}, 4)}
	w.Connected = func(fd int, dst netip.AddrPort) { w.outcomes <- outcome{fd, dst, nil} }
	w.Failed = func(dst netip.AddrPort, err error) { w.outcomes <- outcome{-1, dst, err} }
	w.Late = func() { w.late <- struct{}{} }
	return w
}

func newDialler(t testing.TB) *Dialler {
	t.Helper()
	d := NewDialler(newLoop(t))
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDiallerConnected(t *testing.T) {
	d := newDialler(t)
	server := newFullServer(t)
	at := server.at
	w := newWaiting()
	if err := d.Wait(&w.Client, pending(t, at), at, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(quiet)
	if d.Len() != 1 || len(w.outcomes) != 0 {
		t.Errorf("%d wait, %d outcomes", d.Len(), len(w.outcomes))
	}
	server.drain()
	o := receive(t, w.outcomes, "outcome")
	if o.err != nil || o.dst != at || d.Len() != 0 {
		t.Fatalf("%+v, %d wait", o, d.Len())
	}
	defer unix.Close(o.fd)
	if done, err := rawsock.ConnectState(o.fd, at); !done || err != nil {
		t.Errorf("the socket is not connected: %v, %v", done, err)
	}
	if d.Take(&w.Client) || len(w.late) != 0 {
		t.Error("a client that is connected was removed by Take, or late")
	}
}

// A refusal ends every other connect of the client.
func TestDiallerFailed(t *testing.T) {
	d := newDialler(t)
	full := newFullServer(t).at
	refusing := newFullServer(t)
	w := newWaiting()
	if err := d.Wait(&w.Client, pending(t, full), full, 0); err != nil {
		t.Fatal(err)
	}
	if !d.Add(&w.Client, pending(t, refusing.at), refusing.at, 0) {
		t.Fatal("Add failed for a client that waits")
	}
	refusing.stop()
	o := receive(t, w.outcomes, "outcome")
	if !errors.Is(o.err, syscall.ECONNREFUSED) || o.dst != refusing.at || d.Len() != 0 {
		t.Errorf("%+v, %d wait", o, d.Len())
	}
	time.Sleep(quiet)
	if len(w.outcomes) != 0 {
		t.Errorf("another outcome: %+v", <-w.outcomes)
	}
}

// Of several connects the client gets the first that succeeds, and the others are reset.
func TestDiallerFirstOfSeveral(t *testing.T) {
	d := newDialler(t)
	full := newFullServer(t).at
	server := newFullServer(t)
	at := server.at
	w := newWaiting()
	if err := d.Wait(&w.Client, pending(t, full), full, 0); err != nil {
		t.Fatal(err)
	}
	if !d.Add(&w.Client, pending(t, at), at, 0) {
		t.Fatal("Add failed for a client that waits")
	}
	server.drain()
	o := receive(t, w.outcomes, "outcome")
	if o.err != nil || o.dst != at {
		t.Fatalf("%+v", o)
	}
	unix.Close(o.fd)
	// The client does not wait any more, so Add refuses a third connect.
	if d.Add(&w.Client, pending(t, full), full, 0) {
		t.Error("Add succeeded for a client that is connected")
	}
}

func TestDiallerLate(t *testing.T) {
	d := newDialler(t)
	server := newFullServer(t)
	at := server.at
	w := newWaiting()
	if err := d.Wait(&w.Client, pending(t, at), at, quiet); err != nil {
		t.Fatal(err)
	}
	receive(t, w.late, "call of Late")
	time.Sleep(2 * quiet)
	if len(w.late) != 0 || d.Len() != 1 {
		t.Errorf("late %d times more, %d wait", len(w.late), d.Len())
	}
	server.drain() // the client still waits, and is connected now
	if o := receive(t, w.outcomes, "outcome"); o.err != nil {
		t.Errorf("%+v", o)
	} else {
		unix.Close(o.fd)
	}
}

// Add sets a new patience.
func TestDiallerAddReplacesThePatience(t *testing.T) {
	d := newDialler(t)
	at := newFullServer(t).at
	w := newWaiting()
	if err := d.Wait(&w.Client, pending(t, at), at, time.Hour); err != nil {
		t.Fatal(err)
	}
	if !d.Add(&w.Client, pending(t, at), at, quiet) {
		t.Fatal("Add failed for a client that waits")
	}
	receive(t, w.late, "call of Late")
	if !d.Take(&w.Client) {
		t.Error("Take did not remove a client that waits")
	}
}

// A client does not wait for ever after an Add that has failed because the connect cannot be watched (no memory).
func TestDiallerAddThatFailsHasItsPatience(t *testing.T) {
	d := newDialler(t)
	at := newFullServer(t).at
	w := newWaiting()
	if err := d.Wait(&w.Client, pending(t, at), at, time.Hour); err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0) // which epoll refuses
	if err != nil {
		t.Fatal(err)
	}
	if d.Add(&w.Client, null, at, quiet) {
		t.Error("a descriptor that cannot be watched was added")
	}
	receive(t, w.late, "call of Late")
	if !d.Take(&w.Client) {
		t.Error("the client does not wait any more")
	}
}

// After Take none of the client's callbacks is called, and its own socket is unchanged.
func TestDiallerTake(t *testing.T) {
	d := newDialler(t)
	server := newFullServer(t)
	at := server.at
	w := newWaiting()
	var far net.Conn
	w.Socket, far = clientPair(t)
	if err := d.Wait(&w.Client, pending(t, at), at, quiet); err != nil {
		t.Fatal(err)
	}
	if !d.Take(&w.Client) || d.Take(&w.Client) {
		t.Error("Take must succeed exactly once")
	}
	server.drain()
	time.Sleep(2 * quiet)
	if len(w.outcomes) != 0 || len(w.late) != 0 || d.Len() != 0 {
		t.Errorf("%d outcomes, late %d times, %d wait", len(w.outcomes), len(w.late), d.Len())
	}
	if _, err := unix.Write(w.Socket, []byte("x")); err != nil {
		t.Error(err)
	}
	_ = far.SetReadDeadline(time.Now().Add(patience))
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Errorf("the client's connection: %v", err)
	}
	unix.Close(w.Socket)
}

// Close resets the clients that wait, and nothing can wait afterwards.
func TestDiallerClose(t *testing.T) {
	d := newDialler(t)
	at := newFullServer(t).at
	w := newWaiting()
	var far net.Conn
	w.Socket, far = clientPair(t)
	if err := d.Wait(&w.Client, pending(t, at), at, quiet); err != nil {
		t.Fatal(err)
	}
	if n := d.Close(); n != 1 {
		t.Errorf("%d clients were reset", n)
	}
	_ = far.SetReadDeadline(time.Now().Add(patience))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client: %v, want a reset", err)
	}
	if d.Take(&w.Client) || d.Add(&w.Client, pending(t, at), at, 0) {
		t.Error("a client that was reset waits")
	}
	if err := d.Wait(&newWaiting().Client, pending(t, at), at, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
	if n := d.Close(); n != 0 {
		t.Errorf("%d clients were reset by a second Close", n)
	}
	time.Sleep(2 * quiet)
	if len(w.outcomes) != 0 || len(w.late) != 0 {
		t.Errorf("%d outcomes, late %d times", len(w.outcomes), len(w.late))
	}
}

// Wait, Add, Take, late calls, outcomes and Close at once, for the race detector. Each client has exactly one end: an
// outcome, Take, or Close.
func TestDiallerConcurrentUse(t *testing.T) {
	d := newDialler(t)
	server := newFullServer(t)
	at := server.at
	var waited, ended, closed atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				w := &Client{Socket: -1}
				w.Connected = func(fd int, _ netip.AddrPort) { ended.Add(1); unix.Close(fd) }
				w.Failed = func(netip.AddrPort, error) { ended.Add(1) }
				w.Late = func() {
					if d.Take(w) {
						ended.Add(1)
					}
				}
				fd, _, err := start(t, at)
				if err != nil {
					continue
				}
				waited.Add(1)
				if d.Wait(w, fd, at, time.Millisecond) != nil {
					ended.Add(1)
					continue
				}
				if fd, _, err := start(t, at); err == nil && i%2 == 0 {
					d.Add(w, fd, at, time.Millisecond)
				} else if err == nil {
					unix.Close(fd)
				}
				if (g+i)%3 == 0 && d.Take(w) {
					ended.Add(1)
				}
			}
		})
	}
	server.drain()
	time.Sleep(10 * time.Millisecond)
	closed.Add(int64(d.Close()))
	wg.Wait()
	eventually(t, "every client has ended", func() bool { return ended.Load()+closed.Load() == waited.Load() })
	time.Sleep(quiet)
	if n := ended.Load() + closed.Load(); n != waited.Load() || d.Len() != 0 {
		t.Errorf("%d ends of %d clients, %d wait", n, waited.Load(), d.Len())
	}
}
