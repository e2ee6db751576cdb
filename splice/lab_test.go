package splice

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest"
)

// patience bounds every wait for something that is expected at once.
const patience = 10 * time.Second

// tcpPair is a TCP connection on the loopback interface: one end is a descriptor, for a Loop, the other, far, a *net.TCPConn.
func tcpPair(t testing.TB) (fd int, far *net.TCPConn) {
	t.Helper()
	lfd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // net.Listen would make an MPTCP socket
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(lfd)
	if err := unix.Bind(lfd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(lfd, 1); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(lfd)
	if err != nil {
		t.Fatal(err)
	}
	d := net.Dialer{Timeout: patience, KeepAlive: -1}
	c, err := d.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port))
	if err != nil {
		t.Fatal(err)
	}
	if fd, _, err = unix.Accept4(lfd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = c.SetDeadline(time.Now().Add(patience))
	return fd, c.(*net.TCPConn)
}

func newLoop(t testing.TB) *Loop {
	t.Helper()
	nettest.CheckLeaks(t)
	l, err := NewLoop(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// joined makes a pair and returns the far ends of its sockets, and a channel that is closed when the pair has ended.
func joined(t testing.TB, l *Loop) (a, b *net.TCPConn, p *Pair, ended chan struct{}) {
	t.Helper()
	fa, a := tcpPair(t)
	fb, b := tcpPair(t)
	t.Cleanup(func() { a.Close(); b.Close() })
	ended = make(chan struct{})
	p, err := l.Join(fa, fb, func() { close(ended) })
	if err != nil {
		unix.Close(fa)
		unix.Close(fb)
		t.Fatal(err)
	}
	return a, b, p, ended
}

func await(t testing.TB, ended chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the pair has not ended")
	}
}

// pattern returns n bytes without short repetition, so that lost, doubled or displaced pieces change the content.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 ^ i>>8 ^ i>>16*31)
	}
	return b
}

// transfer writes data to one far end and closes it for writing; the other far end must read exactly that. Both directions may be
// used at the same time.
func transfer(t testing.TB, from, to *net.TCPConn, data []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(data)
		if err == nil {
			err = from.CloseWrite()
		}
		sent <- err
	}()
	h := sha256.New()
	n, err := io.Copy(h, struct{ io.Reader }{to})
	if err := <-sent; err != nil {
		t.Errorf("send: %v", err)
	}
	if err != nil {
		t.Errorf("receive: %v after %d bytes", err, n)
	}
	if want := sha256.Sum256(data); string(h.Sum(nil)) != string(want[:]) {
		t.Errorf("received %d bytes of %d, or different ones", n, len(data))
	}
}

// fds returns the number of open descriptors.
func fds(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
