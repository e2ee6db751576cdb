package inbound

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/rawsock"
	"rootlessnet/splice"
)

// patience is how long a test waits for what must happen; quiet, for what must not.
const (
	patience = 3 * time.Second
	quiet    = 50 * time.Millisecond
)

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func receive[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
	}
	return v
}

func newLoop(t testing.TB) *splice.Loop {
	t.Helper()
	nettest.CheckLeaks(t)
	l, err := splice.NewLoop(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// start begins a connect to dst.
func start(t testing.TB, dst netip.AddrPort) (fd int, done bool, err error) {
	t.Helper()
	if fd, err = rawsock.Socket(true); err != nil {
		t.Fatal(err)
	}
	if done, err = rawsock.ConnectFrom(fd, netip.AddrPort{}, dst); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// fullServer is a server with a full backlog: connects to it stay in progress until drain accepts a connection, or stop closes
// the listener.
type fullServer struct {
	t    testing.TB
	fd   int
	at   netip.AddrPort
	once sync.Once
}

func newFullServer(t testing.TB) *fullServer {
	t.Helper()
	fd, err := rawsock.Socket(true)
	if err != nil {
		t.Fatal(err)
	}
	s := &fullServer{t: t, fd: fd}
	t.Cleanup(s.stop)
	if err := rawsock.Bind(fd, netip.MustParseAddrPort("127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil { // the backlog holds one
		t.Fatal(err)
	}
	s.at = rawsock.LocalAddr(fd)
	filler, done, err := start(t, s.at)
	if err != nil || !done {
		t.Fatal(done, err)
	}
	t.Cleanup(func() { unix.Close(filler) })
	return s
}

// drain accepts one connection, so that the next connect completes.
func (s *fullServer) drain() {
	c, _, err := rawsock.Accept(s.fd)
	if err != nil {
		s.t.Error(err)
		return
	}
	unix.Close(c)
}

// stop closes the listener. The next SYN of a connect that is under way, within a second, is refused.
func (s *fullServer) stop() { s.once.Do(func() { unix.Close(s.fd) }) }

// pending is a connect that is under way.
func pending(t testing.TB, at netip.AddrPort) (fd int) {
	t.Helper()
	fd, done, err := start(t, at)
	if err != nil || done {
		t.Fatalf("the connect is over: %v, %v", done, err)
	}
	return fd
}

// clientPair is an accepted client: its descriptor here and its own end.
func clientPair(t testing.TB) (fd int, far *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.File()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = rawsock.TakeFD(file); err != nil {
		t.Fatal(err)
	}
	return fd, c
}
