package splice

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBothWays(t *testing.T) {
	for _, n := range []int{0, 1, 100, scratchSize - 1, scratchSize, scratchSize + 1, 3 << 20, 30<<20 + 17} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l := newLoop(t)
			a, b, p, ended := joined(t, l)
			data := pattern(n)
			var wg sync.WaitGroup
			wg.Go(func() { transfer(t, a, b, data) })
			wg.Go(func() { transfer(t, b, a, data) })
			wg.Wait()
			await(t, ended)
			if toA, toB := p.Moved(); toA != uint64(n) || toB != uint64(n) {
				t.Errorf("moved %d and %d bytes of %d", toA, toB, n)
			}
		})
	}
}

// TestHalfClose: after the FIN of one direction the other still carries small messages and bulk data.
func TestHalfClose(t *testing.T) {
	l := newLoop(t)
	a, b, _, ended := joined(t, l)
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
	select {
	case <-ended:
		t.Fatal("the pair ended although one direction is open")
	case <-time.After(50 * time.Millisecond):
	}
	buf := make([]byte, 5)
	for range 3 {
		if _, err := b.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "hello" {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	transfer(t, b, a, pattern(5<<20))
	await(t, ended)
}

// TestReset: a reset of one connection resets the other, after the data sent before.
func TestReset(t *testing.T) {
	for _, n := range []int{0, 10, 300 << 10} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l := newLoop(t)
			a, b, _, ended := joined(t, l)
			if _, err := a.Write(pattern(n)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadFull(b, make([]byte, n))
			if err != nil {
				t.Fatalf("%d bytes, %v", got, err)
			}
			_ = a.SetLinger(0)
			a.Close()
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
			await(t, ended)
		})
	}
}

// TestDataRightBeforeReset: data that lies in the joined socket when the reset arrives is delivered first.
func TestDataRightBeforeReset(t *testing.T) {
	l := newLoop(t)
	fa, a := tcpPair(t)
	fb, b := tcpPair(t)
	defer b.Close()
	if _, err := a.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	_ = a.SetLinger(0)
	a.Close()
	time.Sleep(20 * time.Millisecond) // data and reset have arrived before Join
	ended := make(chan struct{})
	if _, err := l.Join(fa, fb, func() { close(ended) }); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if _, err := io.ReadFull(b, buf); err != nil || string(buf) != "last words" {
		t.Errorf("%q, %v", buf, err)
	}
	if _, err := b.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	await(t, ended)
}

// TestCloseWithUnreadData: the kernel sends a reset for such a close, and the other connection is reset, too.
func TestCloseWithUnreadData(t *testing.T) {
	l := newLoop(t)
	a, b, _, ended := joined(t, l)
	if _, err := a.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	b.Close() // the kernel sends a reset, as there is unread data
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	await(t, ended)
}

// TestUrgent: urgent bytes keep their place in the stream, one after the other, and a FIN behind the last one is passed on.
func TestUrgent(t *testing.T) {
	l := newLoop(t)
	a, b, _, ended := joined(t, l)
	rc, err := b.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	marked := func() (at bool) {
		_ = rc.Control(func(fd uintptr) {
			n, err := unix.IoctlGetInt(int(fd), unix.SIOCATMARK)
			at = err == nil && n == 1
		})
		return at
	}
	send := func(text string, flags int) {
		t.Helper()
		arc, err := a.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = arc.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte(text), flags, nil) })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 3)
	for i := range 5 {
		send("abc", 0)
		send("!", unix.MSG_OOB)
		if _, err := io.ReadFull(b, buf); err != nil || string(buf) != "abc" {
			t.Fatalf("%d: %q, %v", i, buf, err)
		}
		if !marked() {
			t.Fatalf("%d: no mark after abc", i)
		}
		if _, err := io.ReadFull(b, buf[:1]); err != nil || buf[0] != '!' {
			t.Fatalf("%d: urgent %q, %v", i, buf[:1], err)
		}
		if marked() {
			t.Fatalf("%d: still a mark", i)
		}
	}
	big := pattern(1 << 20)
	go func() { _, _ = a.Write(big) }()
	if _, err := io.ReadFull(b, make([]byte, len(big))); err != nil {
		t.Fatal(err)
	}
	send("?", unix.MSG_OOB)
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(b); err != nil || string(rest) != "?" {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	b.Close()
	await(t, ended)
}

// TestSlowReader: while a reader does not read, buffering is bounded and other pairs go on; afterwards all data arrives.
func TestSlowReader(t *testing.T) {
	l := newLoop(t)
	a, b, p, ended := joined(t, l)
	data := pattern(64 << 20)
	written := make(chan error, 1)
	go func() {
		_, err := a.Write(data)
		if err == nil {
			err = a.CloseWrite()
		}
		written <- err
	}()
	time.Sleep(300 * time.Millisecond)
	select {
	case err := <-written:
		t.Fatalf("%d bytes were accepted from a sender with a reader that does not read (%v)", len(data), err)
	default:
	}
	_, before := p.Moved()
	c, d, _, _ := joined(t, l)
	transfer(t, c, d, pattern(1<<20))
	transfer(t, d, c, pattern(100))
	if _, after := p.Moved(); after != before {
		t.Errorf("%d bytes were written to a socket with a reader that does not read", after-before)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(b, got); err != nil || string(got) != string(data) {
		t.Errorf("once the reader reads: %v, or different bytes", err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	b.Close()
	await(t, ended)
}

// TestManyPairs: thousands of pairs exchange data without goroutines of their own and without keeping pipes.
func TestManyPairs(t *testing.T) {
	n := 3000
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < 20000 {
		n = int(lim.Cur) / 8
	}
	l := newLoop(t)
	before := fds(t)
	type ends struct{ a, b *net.TCPConn }
	var all []ends
	var over sync.WaitGroup
	for range n {
		fa, a := tcpPair(t)
		fb, b := tcpPair(t)
		over.Add(1)
		if _, err := l.Join(fa, fb, over.Done); err != nil {
			t.Fatal(err)
		}
		all = append(all, ends{a, b})
	}
	t.Cleanup(func() {
		for _, e := range all {
			e.a.Close()
			e.b.Close()
		}
	})
	goroutines := runtime.NumGoroutine()
	buf := make([]byte, 8)
	for round := range 3 {
		for i, e := range all {
			want := fmt.Sprintf("%8d", i*10+round)
			if _, err := io.WriteString(e.a, want); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(e.b, buf); err != nil || string(buf) != want {
				t.Fatalf("pair %d: %q, %v", i, buf, err)
			}
		}
	}
	if now := runtime.NumGoroutine(); now > goroutines {
		t.Errorf("%d goroutines for %d pairs, %d before they were busy", now, n, goroutines)
	}
	if now := fds(t); now > before+4*n+2*maxIdlePipes {
		t.Errorf("%d descriptors for %d pairs", now-before, n)
	}
	for _, e := range all {
		e.a.Close()
		e.b.Close()
	}
	over.Wait()
}

// TestFDsUnderUse: pipes are released again, however many connections were in bulk transfer at once.
func TestFDsUnderUse(t *testing.T) {
	const n = 60
	l := newLoop(t)
	before := fds(t)
	var wg sync.WaitGroup
	for range n {
		a, b, _, _ := joined(t, l)
		wg.Go(func() { transfer(t, a, b, pattern(2<<20)) })
		wg.Go(func() { transfer(t, b, a, pattern(2<<20)) })
	}
	wg.Wait()
	end := time.Now().Add(patience)
	for fds(t) > before+2*n+2*maxIdlePipes+2 { // the far ends are still open
		if time.Now().After(end) {
			t.Fatalf("%d descriptors, %d before", fds(t), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
