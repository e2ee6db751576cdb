package inbound

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/spin"
)

// handler records what a Listener calls.
type handler struct {
	notReady   atomic.Bool
	readyCalls atomic.Int64
	clients    chan int
	from       chan netip.AddrPort
	failed     chan error
	serve      func() // called by Serve, if not nil
}

func newHandler() *handler {
	return &handler{clients: make(chan int, 64), from: make(chan netip.AddrPort, 64), failed: make(chan error, 64)}
}

func (h *handler) Ready() bool {
	h.readyCalls.Add(1)
	return !h.notReady.Load()
}

func (h *handler) Serve(fd int, client netip.AddrPort) spin.Result {
	if h.serve != nil {
		h.serve()
	}
	h.from <- client
	h.clients <- fd
	return spin.Progress
}

func (h *handler) AcceptFailed(err error) { h.failed <- err }

// newListener serves clients by h at the address.
func newListener(t testing.TB, blocking bool, tune func(int), h Handler) (*Listener, string) {
	t.Helper()
	nettest.CheckLeaks(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := Listen(nil, l.(*net.TCPListener), blocking, tune, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n, l.Addr().String()
}

func call(t testing.TB, at string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp4", at, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestListenerServesClients(t *testing.T) {
	for _, blocking := range []bool{false, true} {
		h := newHandler()
		tune := func(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1) }
		_, at := newListener(t, blocking, tune, h)
		for range 3 {
			c := call(t, at)
			fd := receive(t, h.clients, "client")
			if from := <-h.from; from.String() != c.LocalAddr().String() {
				t.Errorf("the client is %v, want %v", from, c.LocalAddr())
			}
			if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || v != 1 {
				t.Errorf("an option of the listener is not the client's: %d, %v", v, err)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("the client's socket blocks: %#x, %v", flags, err)
			}
			unix.Close(fd)
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after close: %v", err)
			}
		}
	}
}

// While the handler is not ready the clients stay in the backlog, and Ready is called once in each Pause.
func TestListenerPausesWhileNotReady(t *testing.T) {
	h := newHandler()
	h.notReady.Store(true)
	_, at := newListener(t, false, nil, h)
	call(t, at)
	time.Sleep(4 * Pause)
	if n := h.readyCalls.Load(); n < 2 || n > 6 {
		t.Errorf("Ready was called %d times in %v", n, 4*Pause)
	}
	if len(h.clients) != 0 {
		t.Error("a client was accepted")
	}
	h.notReady.Store(false)
	unix.Close(receive(t, h.clients, "client"))
}

// An accept that fails is reported, and tried again after a Pause. Clients are served when it works again.
func TestListenerPausesAfterAFailedAccept(t *testing.T) {
	h := newHandler()
	_, at := newListener(t, false, nil, h)
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	to, err := net.ResolveTCPAddr("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	few := lim
	few.Cur = 3 // less than are open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(c, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: to.Port})
	time.Sleep(4 * Pause)
	n := len(h.failed)
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); rerr != nil || err != nil {
		t.Fatal(rerr, err)
	}
	if n == 0 || n > 5 {
		t.Errorf("accept was tried %d times in %v", n, 4*Pause)
	}
	if err := <-h.failed; !errors.Is(err, syscall.EMFILE) {
		t.Errorf("reported %v", err)
	}
	unix.Close(receive(t, h.clients, "client"))
}

// Close waits for the handler that is running, and frees the port.
func TestListenerCloseWaits(t *testing.T) {
	h := newHandler()
	running, goOn := make(chan struct{}), make(chan struct{})
	h.serve = func() { close(running); <-goOn }
	n, at := newListener(t, true, nil, h)
	call(t, at)
	receive(t, running, "client")
	closed := make(chan struct{})
	go func() { defer close(closed); n.Close() }()
	select {
	case <-closed:
		t.Error("Close did not wait for the handler")
	case <-time.After(quiet):
	}
	close(goOn)
	receive(t, closed, "end of Close")
	unix.Close(receive(t, h.clients, "client"))
	if c, err := net.Dial("tcp4", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v, %v", c, err)
	}
	n.Close() // again
}

// A Listener that pauses is closed at once, and the end of its pause has no effect.
func TestListenerCloseWhilePausing(t *testing.T) {
	h := newHandler()
	h.notReady.Store(true)
	n, at := newListener(t, false, nil, h)
	c := call(t, at)
	eventually(t, "it pauses", func() bool { return h.readyCalls.Load() > 0 })
	begin := time.Now()
	n.Close()
	if took := time.Since(begin); took > Pause/2 {
		t.Errorf("Close took %v", took)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a client in the backlog: %v, want a reset", err)
	}
	time.Sleep(2 * Pause)
}
