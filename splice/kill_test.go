package splice

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wantReset reads until the reset.
func wantReset(t testing.TB, c io.Reader) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read ended with %v, want a reset", err)
	}
}

// Kill resets both ends in every state of the pair, and no other pair.
func TestKill(t *testing.T) {
	l := newLoop(t)
	a2, b2, _, _ := joined(t, l)
	t.Run("idle", func(t *testing.T) {
		a, b, p, ended := joined(t, l)
		p.Kill()
		await(t, ended)
		wantReset(t, a)
		wantReset(t, b)
		p.Kill() // again, when it has ended
	})
	t.Run("half-closed", func(t *testing.T) {
		a, b, p, ended := joined(t, l)
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(b); err != nil {
			t.Fatal(err)
		}
		p.Kill()
		await(t, ended)
		wantReset(t, a)
	})
	t.Run("in bulk", func(t *testing.T) {
		a, b, p, ended := joined(t, l)
		var wg sync.WaitGroup
		wg.Go(func() {
			for buf := make([]byte, 64<<10); ; {
				if _, err := a.Write(buf); err != nil {
					return
				}
			}
		})
		if _, err := io.CopyN(io.Discard, b, 8<<20); err != nil {
			t.Error(err)
		}
		p.Kill()
		await(t, ended)
		wantReset(t, b)
		wg.Wait()
	})
	t.Run("several times at once", func(t *testing.T) {
		a, _, p, ended := joined(t, l)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(p.Kill)
		}
		wg.Wait()
		await(t, ended)
		wantReset(t, a)
	})
	if _, err := a2.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(b2, make([]byte, 1)); err != nil {
		t.Errorf("another pair: %v", err)
	}
}

// onEnd is called once, whether the pair is killed, ends by itself or is closed with its loop.
func TestKillRaces(t *testing.T) {
	l := newLoop(t)
	var mu sync.Mutex
	ends := map[int]int{}
	var wg sync.WaitGroup
	const pairs = 50
	for i := range pairs {
		fa, a := tcpPair(t)
		fb, b := tcpPair(t)
		defer b.Close()
		p, err := l.Join(fa, fb, func() {
			mu.Lock()
			defer mu.Unlock()
			ends[i]++
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(p.Kill)
		wg.Go(func() { a.Close() })
		wg.Go(func() { _ = p.HalfClosed() })
	}
	l.Close()
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for i := range pairs {
		if ends[i] != 1 {
			t.Errorf("pair %d has ended %d times", i, ends[i])
		}
	}
}

// Kill does nothing for a pair of a closed loop.
func TestKillAfterClose(t *testing.T) {
	l := newLoop(t)
	a, _, p, ended := joined(t, l)
	l.Close()
	await(t, ended)
	wantReset(t, a)
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // may have the number of one of the pair's sockets
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p.Kill()
	time.Sleep(10 * time.Millisecond)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		t.Errorf("another file was closed: %v", err)
	}
}

// HalfClosed reports the first FIN, from either side; data does not change it.
func TestHalfClosed(t *testing.T) {
	for _, first := range []int{0, 1} {
		l := newLoop(t)
		a, b, p, ended := joined(t, l)
		if first == 1 {
			a, b = b, a
		}
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if p.HalfClosed() {
			t.Error("half-closed before any FIN")
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(b); err != nil { // the FIN has crossed
			t.Fatal(err)
		}
		if !p.HalfClosed() {
			t.Error("not half-closed after a FIN")
		}
		if _, err := b.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Errorf("the other direction: %v", err)
		}
		_ = b.CloseWrite()
		await(t, ended)
	}
}
