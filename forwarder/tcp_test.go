package forwarder

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/race"
)

// resetSoon is how fast a reset must cross.
const resetSoon = 100 * time.Millisecond

type deadliner interface {
	net.Conn
	CloseWrite() error
}

var (
	_ deadliner = (*guestConn)(nil)
	_ deadliner = (*net.TCPConn)(nil)
)

// raceSlack is what the race detector may add to a time limit.
var raceSlack = race.Extra(400 * time.Millisecond)

// say writes and hear reads, each all of it.
func say(t testing.TB, c net.Conn, s string) {
	t.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

func hear(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

func hearEOF(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v; want EOF", n, err)
	}
}

// hearReset reads until the reset, which must come soon.
func hearReset(t testing.TB, c net.Conn) {
	t.Helper()
	begin := time.Now()
	_ = c.SetReadDeadline(begin.Add(patience))
	_, err := io.Copy(io.Discard, c)
	if !isReset(err) {
		t.Fatalf("read ended with %v; want a reset", err)
	}
	if took := time.Since(begin); took > resetSoon+raceSlack {
		t.Errorf("the reset took %v", took)
	}
}

// noise is a stream of n bytes that cannot be confused with a shifted or torn copy of itself.
func noise(n int64, seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// transfer sends n bytes from one to other and closes that direction. It returns what was wrong.
func transfer(from, to deadliner, n int64, seed byte) error {
	sent := make(chan error, 1)
	sum := crc32.New(castagnoli)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(from, sum)}, noise(n, seed), make([]byte, 128<<10))
		sent <- errors.Join(err, from.CloseWrite())
	}()
	got := crc32.New(castagnoli)
	m, err := io.CopyBuffer(struct{ io.Writer }{got}, to, make([]byte, 128<<10))
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	if m != n || got.Sum32() != sum.Sum32() {
		return fmt.Errorf("%d bytes arrived of %d, or others", m, n)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func TestTCPBothDirections(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		w := newTCPWorld(t, nil)
		l := listenTCP(t, addr)
		g := w.mustDial(l.at)
		h := l.accept(t)
		say(t, g, "hello")
		hear(t, h, "hello")
		say(t, h, "welcome")
		hear(t, g, "welcome")
		if s := w.Stats(); s.Active != 1 || s.Outbound != 1 || s.Dialling != 0 {
			t.Errorf("stats %+v", s)
		}
		if f := w.Flows(); len(f) != 1 || f[0].Flow.Dst != l.at || f[0].Direction != Outbound {
			t.Errorf("flows %+v", f)
		}
		_, _ = g.Close(), h.Close()
		eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
		if s := w.Stats(); s.BytesToHost != 5 || s.BytesToGuest != 7 {
			t.Errorf("counted %d out, %d in", s.BytesToHost, s.BytesToGuest)
		}
	}
}

// A service that listens on one family of the loopback answers on both addresses of the gateway.
func TestTCPLoopbackOfTheOtherFamily(t *testing.T) {
	w := newTCPWorld(t, nil)
	for _, c := range []struct {
		addr string
		gw   netip.Addr
	}{{"127.0.0.1:0", gw6}, {"[::1]:0", gw4}} {
		l := listenTCP(t, c.addr)
		g := w.mustDial(netip.AddrPortFrom(c.gw, l.at.Port()))
		h := l.accept(t)
		say(t, g, "x")
		hear(t, h, "x")
	}
}

func TestTCPRefused(t *testing.T) {
	w := newTCPWorld(t, nil)
	l := listenTCP(t, "127.0.0.1:0")
	_ = l.Close()
	begin := time.Now()
	if _, err := w.dial(l.at, patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	if took := time.Since(begin); took > resetSoon+raceSlack {
		t.Errorf("took %v", took)
	}
	if s := w.Stats(); s.Outbound != 0 || s.DialErrors != 1 || s.Dialling != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A port in the range the kernel chooses from, on which nobody listens, must be refused each time: TCP can connect a
// socket to itself.
func TestTCPNoSelfConnect(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	sa := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	local, _ := unix.Getsockname(fd)
	if err := unix.Connect(fd, local); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	h, err := newHostConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	port := local.(*unix.SockaddrInet4).Port
	if !isSelf(fd, netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(port))) {
		t.Error("not noticed")
	}
}

func TestTCPHalfClose(t *testing.T) {
	const size = 3 << 20
	t.Run("guest first", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := transfer(g, h, size, 1); err != nil {
			t.Fatal(err)
		}
		say(t, h, "still here")
		hear(t, g, "still here")
		if err := transfer(h, g, size, 2); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
	})
	t.Run("host first", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := transfer(h, g, size, 3); err != nil {
			t.Fatal(err)
		}
		say(t, g, "still here")
		hear(t, h, "still here")
		if err := transfer(g, h, size, 4); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
	})
}

// What was sent before a close is never lost, however slow the reader and whatever is closed first.
func TestTCPNothingLostAtClose(t *testing.T) {
	w := newTCPWorld(t, nil)
	for i := range 20 {
		g, h := w.pair()
		size := int64(1 + i*50_000)
		data, _ := io.ReadAll(noise(size, byte(i)))
		var from, to deadliner = g, h
		if i%2 == 1 {
			from, to = h, g
		}
		done := make(chan error, 1)
		go func() {
			_, err := from.Write(data)
			done <- errors.Join(err, from.CloseWrite())
		}()
		if err := to.CloseWrite(); err != nil { // both FINs cross
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
		_ = to.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(to)
		if err = errors.Join(err, <-done); err != nil || string(got) != string(data) {
			t.Fatalf("%d: %d of %d bytes, %v", i, len(got), size, err)
		}
	}
	eventually(t, "all connections end", func() bool { return w.Stats().Active == 0 })
}

// stall writes to c until it takes no more.
func stall(t testing.TB, c net.Conn) (written int) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(150 * time.Millisecond))
		n, err := c.Write(b)
		written += n
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return written
		}
		if err != nil {
			t.Fatal(err)
		}
		if written > 256<<20 {
			t.Fatal("what nobody reads is taken without end")
		}
	}
}

func hostReset(t testing.TB, h *net.TCPConn) {
	t.Helper()
	if err := h.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = h.Close()
}

func (w *tcpWorld) ends(within time.Duration) {
	w.t.Helper()
	begin := time.Now()
	eventually(w.t, "the connection ends", func() bool { return w.Stats().Active == 0 })
	if took := time.Since(begin); took > within+raceSlack {
		w.t.Errorf("it took %v", took)
	}
}

func TestTCPHostResets(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		hostReset(t, h)
		hearReset(t, g)
	})
	t.Run("guest does not read", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		say(t, h, "unread")
		hostReset(t, h)
		w.ends(resetSoon)
		hear(t, g, "unread") // what came before the reset can be read, as on Linux
		hearReset(t, g)
	})
	t.Run("guest's window is closed", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		stall(t, h)
		hostReset(t, h)
		w.ends(resetSoon)
		hearReset(t, g)
	})
	t.Run("host's window is closed", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		stall(t, g)
		hostReset(t, h)
		hearReset(t, g)
	})
	t.Run("after its FIN", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := h.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEOF(t, g)
		hostReset(t, h)
		w.ends(resetSoon)
		eventually(t, "the guest's writes fail", func() bool { _, err := g.Write([]byte("x")); return err != nil })
	})
	t.Run("after the guest's FIN", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := g.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEOF(t, h)
		hostReset(t, h)
		hearReset(t, g)
	})
	t.Run("with data unread", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		say(t, g, "unread")
		eventually(t, "the data arrives", func() bool { return w.Stats().BytesToHost == 6 })
		time.Sleep(10 * time.Millisecond)
		_ = h.Close() // no linger: Linux makes it a reset
		hearReset(t, g)
	})
}

// A socket tells its error once: where the write was told, the read says "end", which must not pass for a FIN.
func TestTCPResetIsNoFIN(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(h *hostConn, peer *net.TCPConn, f *flow)
		reset bool
	}{
		{"reset", func(_ *hostConn, peer *net.TCPConn, _ *flow) { hostReset(t, peer) }, true},
		{"FIN", func(_ *hostConn, peer *net.TCPConn, _ *flow) { _ = peer.CloseWrite() }, false},
		{"both FINs", func(h *hostConn, peer *net.TCPConn, f *flow) {
			f.guestEOF.Store(true)
			_ = h.rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
			_ = peer.CloseWrite()
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := listenTCP(t, "127.0.0.1:0")
			fd, _, err := startDial(egress{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.at.Port()), 0)
			if err != nil {
				t.Fatal(err)
			}
			h, err := newHostConn(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer h.close()
			f := &flow{h: h}
			c.do(h, l.accept(t), f)
			b := make([]byte, 1)
			eventually(t, "the connection has ended", func() (ended bool) {
				_ = h.rc.Control(func(fd uintptr) {
					_, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) // as the write would take it
					n, err := (&sockReader{fd: fd}).Read(b)
					ended = n == 0 && err == io.ErrUnexpectedEOF
				})
				return ended
			})
			if got := f.hostReset(); got != c.reset {
				t.Errorf("reset: %v", got)
			}
		})
	}
}

func TestTCPGuestResets(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		g.reset()
		hearReset(t, h)
	})
	t.Run("after data", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		for range 20 {
			g, h := w.pair()
			say(t, g, "last words")
			g.reset()
			hear(t, h, "last words")
			hearReset(t, h)
		}
	})
	t.Run("host does not read", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		say(t, g, "unread")
		g.reset()
		w.ends(resetSoon)
		hearReset(t, h)
	})
	t.Run("host's window is closed", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		stall(t, g)
		g.reset()
		w.ends(resetSoon)
		hearReset(t, h)
	})
	t.Run("guest's window is closed", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		stall(t, h)
		g.reset()
		hearReset(t, h)
	})
	t.Run("after its FIN", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := g.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEOF(t, h)
		g.reset()
		w.ends(resetSoon)
		eventually(t, "the host's writes fail", func() bool { _, err := h.Write([]byte("x")); return err != nil })
	})
	t.Run("after the host's FIN", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := h.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEOF(t, g)
		g.reset()
		hearReset(t, h)
	})
	t.Run("with data unread", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		say(t, h, "unread")
		eventually(t, "the data arrives", func() bool { return w.Stats().BytesToGuest == 6 })
		time.Sleep(10 * time.Millisecond)
		_ = g.Close()
		hearReset(t, h)
	})
}

func TestTCPBulk(t *testing.T) {
	size := int64(100 << 20)
	if race.Enabled || testing.Short() {
		size = 20 << 20
	}
	t.Run("out", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := transfer(g, h, size, 1); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("in", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		if err := transfer(h, g, size, 2); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("both", func(t *testing.T) {
		w := newTCPWorld(t, nil)
		g, h := w.pair()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := transfer(g, h, size/2, 3); err != nil {
				t.Errorf("out: %v", err)
			}
		})
		wg.Go(func() {
			if err := transfer(h, g, size/2, 4); err != nil {
				t.Errorf("in: %v", err)
			}
		})
		wg.Wait()
	})
}
