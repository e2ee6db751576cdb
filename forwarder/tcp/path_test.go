package tcp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/race"
	"rootlessnet/internal/rawsock"
)

func TestTCPBothDirections(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		w := newWorld(t, nil)
		l := forwardlab.NewServer(t, addr)
		g := w.guest.MustDial(l.At)
		h := l.Accept(t)
		forwardlab.SendString(t, g, "hello")
		forwardlab.Expect(t, h, "hello")
		forwardlab.SendString(t, h, "welcome")
		forwardlab.Expect(t, g, "welcome")
		if s := w.Stats(); s.Active != 1 || s.Outbound != 1 || s.Dialling != 0 {
			t.Errorf("stats %+v", s)
		}
		if f := w.f.Flows.List(); len(f) != 1 || f[0].Key.Dst != l.At || f[0].Direction != flow.Outbound {
			t.Errorf("flows %+v", f)
		}
		_, _ = g.Close(), h.Close()
		forwardlab.Eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
		if s := w.Stats(); s.BytesToHost != 5 || s.BytesToGuest != 7 {
			t.Errorf("counted %d out, %d in", s.BytesToHost, s.BytesToGuest)
		}
	}
}

// A service that listens on the loopback of one family can be reached by both addresses of the gateway.
func TestTCPLoopbackOfTheOtherFamily(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		addr string
		gw   netip.Addr
	}{{"127.0.0.1:0", forwardlab.Gateway6}, {"[::1]:0", forwardlab.Gateway4}} {
		l := forwardlab.NewServer(t, c.addr)
		g := w.guest.MustDial(netip.AddrPortFrom(c.gw, l.At.Port()))
		h := l.Accept(t)
		forwardlab.SendString(t, g, "x")
		forwardlab.Expect(t, h, "x")
	}
}

func TestTCPRefused(t *testing.T) {
	w := newWorld(t, nil)
	l := forwardlab.NewServer(t, "127.0.0.1:0")
	_ = l.Close()
	begin := time.Now()
	if _, err := w.guest.Dial(l.At, forwardlab.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	if took := time.Since(begin); took > forwardlab.ResetSoon+forwardlab.RaceSlack {
		t.Errorf("took %v", took)
	}
	if s := w.Stats(); s.Outbound != 0 || s.DialErrors != 1 || s.Dialling != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A port in the range the kernel chooses from, on which nothing listens, must be refused each time: TCP can connect a
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
	if !rawsock.IsSelf(fd, netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(port))) {
		t.Error("not noticed")
	}
}

func TestTCPHalfClose(t *testing.T) {
	const size = 3 << 20
	t.Run("guest first", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := forwardlab.Transfer(g, h, size, 1); err != nil {
			t.Fatal(err)
		}
		forwardlab.SendString(t, h, "still here")
		forwardlab.Expect(t, g, "still here")
		if err := forwardlab.Transfer(h, g, size, 2); err != nil {
			t.Fatal(err)
		}
		forwardlab.Eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
	})
	t.Run("host first", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := forwardlab.Transfer(h, g, size, 3); err != nil {
			t.Fatal(err)
		}
		forwardlab.SendString(t, g, "still here")
		forwardlab.Expect(t, h, "still here")
		if err := forwardlab.Transfer(g, h, size, 4); err != nil {
			t.Fatal(err)
		}
		forwardlab.Eventually(t, "the connection ends", func() bool { return w.Stats().Active == 0 })
	})
}

// What was sent before a close is never lost, however slow the reader and whatever is closed first.
func TestTCPNothingLostAtClose(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 20 {
		g, h := w.pair()
		size := int64(1 + i*50_000)
		data, _ := io.ReadAll(forwardlab.Noise(size, byte(i)))
		var from, to forwardlab.Stream = g, h
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
		_ = to.SetReadDeadline(time.Now().Add(forwardlab.Patience))
		got, err := io.ReadAll(to)
		if err = errors.Join(err, <-done); err != nil || string(got) != string(data) {
			t.Fatalf("%d: %d of %d bytes, %v", i, len(got), size, err)
		}
	}
	forwardlab.Eventually(t, "all connections end", func() bool { return w.Stats().Active == 0 })
}

func (w *world) ends(within time.Duration) {
	w.t.Helper()
	begin := time.Now()
	forwardlab.Eventually(w.t, "the connection ends", func() bool { return w.Stats().Active == 0 })
	if took := time.Since(begin); took > within+forwardlab.RaceSlack {
		w.t.Errorf("it took %v", took)
	}
}

func TestTCPHostResets(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.Reset(t, h)
		forwardlab.ExpectReset(t, g)
	})
	t.Run("guest does not read", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.SendString(t, h, "unread")
		forwardlab.Reset(t, h)
		w.ends(forwardlab.ResetSoon)
		forwardlab.Expect(t, g, "unread") // what came before the reset can be read, as on Linux
		forwardlab.ExpectReset(t, g)
	})
	t.Run("guest's window is closed", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.Fill(t, h)
		forwardlab.Reset(t, h)
		w.ends(forwardlab.ResetSoon)
		forwardlab.ExpectReset(t, g)
	})
	t.Run("host's window is closed", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.Fill(t, g)
		forwardlab.Reset(t, h)
		forwardlab.ExpectReset(t, g)
	})
	t.Run("after its FIN", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := h.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		forwardlab.ExpectEOF(t, g)
		forwardlab.Reset(t, h)
		w.ends(forwardlab.ResetSoon)
		forwardlab.Eventually(t, "the guest's writes fail", func() bool { _, err := g.Write([]byte("x")); return err != nil })
	})
	t.Run("after the guest's FIN", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := g.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		forwardlab.ExpectEOF(t, h)
		forwardlab.Reset(t, h)
		forwardlab.ExpectReset(t, g)
	})
	t.Run("with data unread", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.SendString(t, g, "unread")
		forwardlab.Eventually(t, "the data arrives", func() bool { return w.Stats().BytesToHost == 6 })
		time.Sleep(10 * time.Millisecond)
		_ = h.Close() // no linger: Linux makes it a reset
		forwardlab.ExpectReset(t, g)
	})
}

// A socket reports its error once: if the write got it, the read returns end of file, which must not be taken for a FIN.
func TestTCPResetIsNoFIN(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(h *hostConn, peer *net.TCPConn, f *connection)
		reset bool
	}{
		{"reset", func(_ *hostConn, peer *net.TCPConn, _ *connection) { forwardlab.Reset(t, peer) }, true},
		{"FIN", func(_ *hostConn, peer *net.TCPConn, _ *connection) { _ = peer.CloseWrite() }, false},
		{"both FINs", func(h *hostConn, peer *net.TCPConn, f *connection) {
			f.guestEOF.Store(true)
			_ = h.rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
			_ = peer.CloseWrite()
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := forwardlab.NewServer(t, "127.0.0.1:0")
			fd, _, err := forwarder.StartDial(forwarder.Egress{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.At.Port()), 0)
			if err != nil {
				t.Fatal(err)
			}
			h, err := newHostConn(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer h.close()
			f := &connection{h: h}
			c.do(h, l.Accept(t), f)
			b := make([]byte, 1)
			forwardlab.Eventually(t, "the connection has ended", func() (ended bool) {
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
		w := newWorld(t, nil)
		g, h := w.pair()
		g.Reset()
		forwardlab.ExpectReset(t, h)
	})
	t.Run("after data", func(t *testing.T) {
		w := newWorld(t, nil)
		for range 20 {
			g, h := w.pair()
			forwardlab.SendString(t, g, "last words")
			g.Reset()
			forwardlab.Expect(t, h, "last words")
			forwardlab.ExpectReset(t, h)
		}
	})
	t.Run("host does not read", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.SendString(t, g, "unread")
		g.Reset()
		w.ends(forwardlab.ResetSoon)
		forwardlab.ExpectReset(t, h)
	})
	t.Run("host's window is closed", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.Fill(t, g)
		g.Reset()
		w.ends(forwardlab.ResetSoon)
		forwardlab.ExpectReset(t, h)
	})
	t.Run("guest's window is closed", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.Fill(t, h)
		g.Reset()
		forwardlab.ExpectReset(t, h)
	})
	t.Run("after its FIN", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := g.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		forwardlab.ExpectEOF(t, h)
		g.Reset()
		w.ends(forwardlab.ResetSoon)
		forwardlab.Eventually(t, "the host's writes fail", func() bool { _, err := h.Write([]byte("x")); return err != nil })
	})
	t.Run("after the host's FIN", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := h.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		forwardlab.ExpectEOF(t, g)
		g.Reset()
		forwardlab.ExpectReset(t, h)
	})
	t.Run("with data unread", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		forwardlab.SendString(t, h, "unread")
		forwardlab.Eventually(t, "the data arrives", func() bool { return w.Stats().BytesToGuest == 6 })
		time.Sleep(10 * time.Millisecond)
		_ = g.Close()
		forwardlab.ExpectReset(t, h)
	})
}

func TestTCPBulk(t *testing.T) {
	size := int64(100 << 20)
	if race.Enabled || testing.Short() {
		size = 20 << 20
	}
	t.Run("out", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := forwardlab.Transfer(g, h, size, 1); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("in", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		if err := forwardlab.Transfer(h, g, size, 2); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("both", func(t *testing.T) {
		w := newWorld(t, nil)
		g, h := w.pair()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := forwardlab.Transfer(g, h, size/2, 3); err != nil {
				t.Errorf("out: %v", err)
			}
		})
		wg.Go(func() {
			if err := forwardlab.Transfer(h, g, size/2, 4); err != nil {
				t.Errorf("in: %v", err)
			}
		})
		wg.Wait()
	})
}

// A guest that reads slowly gets every byte of a connection that both sides have closed. The host's socket is in the state
// CLOSED by then, with data that was not read yet: that is no reset.
func TestTCPSlowReaderAfterBothFINs(t *testing.T) {
	w := newWorld(t, nil)
	g, h := w.pair()
	_ = g.CloseWrite()
	forwardlab.ExpectEOF(t, h)
	sent := int64(forwardlab.Fill(t, h))
	if err := h.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rc, err := h.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// The guest makes room until the rest, with the FIN, is in the receive queue of the gateway's socket.
	var read int64
	for closed := false; !closed && read < sent; {
		_ = g.SetReadDeadline(time.Now().Add(forwardlab.Patience))
		n, err := io.CopyN(io.Discard, g, 64<<10)
		read += n
		if err != nil {
			t.Fatalf("after %d bytes of %d: %v", read, sent, err)
		}
		time.Sleep(5 * time.Millisecond)
		_ = rc.Control(func(fd uintptr) { closed = rawsock.Closed(fd) })
	}
	if read == sent {
		t.Fatal("the connection was never closed with data in the queue")
	}
	time.Sleep(10 * stallWatch)
	_ = g.SetReadDeadline(time.Now().Add(forwardlab.Patience))
	n, err := io.Copy(io.Discard, g)
	if read += n; err != nil || read != sent {
		t.Errorf("%d bytes of %d, %v", read, sent, err)
	}
}
