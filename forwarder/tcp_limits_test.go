package forwarder

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/race"
)

func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(cerr, err)
}

// cpu is the processor time this process has used.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// quietly fails when what goes on now takes more than a tenth of a processor.
func quietly(t testing.TB, what string) {
	t.Helper()
	const watch = 500 * time.Millisecond
	time.Sleep(50 * time.Millisecond)
	before := cpu(t)
	time.Sleep(watch)
	if used := cpu(t) - before; used > watch/10 {
		t.Errorf("%s: %v of processor time in %v", what, used, watch)
	}
}

// Each way of standing still must cost nothing: these are the waits in which a pump may spin.
func TestTCPStandingStillIsFree(t *testing.T) {
	w := newTCPWorld(t, nil)
	w.pair() // idle
	g1, h1 := w.pair()
	_ = g1.CloseWrite() // half closed by the guest
	hearEOF(t, h1)
	g2, h2 := w.pair()
	_ = h2.CloseWrite() // half closed by the host
	hearEOF(t, g2)
	g3, h3 := w.pair()
	n3 := stall(t, g3) // nobody reads at the host's end
	g4, h4 := w.pair()
	n4 := stall(t, h4) // nobody reads in the guest
	g5, h5 := w.pair()
	n5g, n5h := stall(t, g5), stall(t, h5)
	quietly(t, "standing connections")
	// And every one of them goes on.
	say(t, h1, "x")
	hear(t, g1, "x")
	say(t, g2, "x")
	hear(t, h2, "x")
	for _, c := range []struct {
		net.Conn
		sent int
	}{{h3, n3}, {g4, n4}, {g5, n5h}, {h5, n5g}} {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.CopyN(io.Discard, c, int64(c.sent)); err != nil {
			t.Errorf("after a stall: %d bytes of %d, %v", n, c.sent, err)
		}
	}
}

// A sender whose receiver does not read is stopped before it fills our memory.
func TestTCPMemoryIsBounded(t *testing.T) {
	const (
		conns = 2
		limit = 40 << 20 // bytes for each: the buffers of the test's own stack, which grow to 16 MiB, and of ours
	)
	w := newTCPWorld(t, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	sent := 0
	for range conns {
		g, h := w.pair()
		sent += stall(t, g)
		sent += stall(t, h)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int(after.HeapAlloc) - int(before.HeapAlloc); held > conns*limit {
		t.Errorf("%d MiB on the heap after %d MiB were sent to nobody", held>>20, sent>>20)
	}
}

func TestTCPThousandIdle(t *testing.T) {
	conns := 1000
	if race.Enabled {
		conns = 300
	}
	w := newTCPWorld(t, nil)
	l := listenTCP(t, "127.0.0.1:0")
	var hosts []net.Conn
	defer func() {
		for _, h := range hosts {
			_ = h.Close()
		}
	}()
	accepted := make(chan error, 1)
	go func() {
		_ = l.SetDeadline(time.Now().Add(10 * time.Second))
		for range conns {
			h, err := l.Accept()
			if err != nil {
				accepted <- err
				return
			}
			hosts = append(hosts, h)
		}
		accepted <- nil
	}()
	for range conns {
		w.mustDial(l.at)
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are joined", func() bool { return w.Stats().Active == conns })
	quietly(t, "idle connections")
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	// What is left behind is for CheckLeaks to tell.
}

// Close ends what is under way in every state.
func TestTCPCloseWithEverythingUnderWay(t *testing.T) {
	w := newTCPWorld(t, func(c *StreamsConfig) {
		c.ServeDNS = func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	})
	g, _ := w.pair()
	stall(t, g)
	_, h := w.pair()
	stall(t, h)
	w.mustDial(netip.AddrPortFrom(gw4, dnsPort))
	g2, h2 := w.pair()
	go func() { _ = transfer(g2, h2, 1<<30, 1) }()
	w.listen(served(guest4))
	p := w.publish("127.0.0.1:0")
	w.wire.deaf.Store(true) // from here on no handshake is completed
	call(t, netip.AddrPort{}, p.Addr())
	l := listenTCP(t, "127.0.0.1:0")
	dialled := make(chan struct{})
	go func() {
		defer close(dialled)
		_, _ = w.dial(l.at, 100*time.Millisecond)
	}()
	l.accept(t)
	<-dialled
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	_, _ = g2.Close(), h2.Close()
}

func TestTCPDNS(t *testing.T) {
	w := newTCPWorld(t, func(c *StreamsConfig) {
		c.ServeDNS = func(c net.Conn) { _, _ = io.Copy(c, c) }
	})
	for _, gw := range []netip.Addr{gw4, gw6} {
		g := w.mustDial(netip.AddrPortFrom(gw, dnsPort))
		say(t, g, "question")
		hear(t, g, "question")
		_ = g.CloseWrite()
		hearEOF(t, g)
	}
}

// Each verdict of policy has its own answer.
func TestTCPVerdicts(t *testing.T) {
	w := newTCPWorld(t, nil)
	for _, c := range []struct {
		dst  string
		icmp uint32 // type<<8 | code
		want syscall.Errno
	}{
		{"10.0.2.77:9", 3<<8 | 1, syscall.EHOSTUNREACH},         // nobody there
		{"[fd00::77]:9", 1<<8 | 3, syscall.EHOSTUNREACH},        // nor there
		{"169.254.169.254:80", 3<<8 | 13, syscall.EHOSTUNREACH}, // prohibited
	} {
		w.wire.icmp.Store(0)
		begin := time.Now()
		if _, err := w.dial(ap(c.dst), 500*time.Millisecond); err == nil {
			t.Errorf("%s: connected", c.dst)
		}
		if got := w.wire.icmp.Load(); got != c.icmp {
			t.Errorf("%s: ICMP %d/%d, want %d/%d", c.dst, got>>8, got&255, c.icmp>>8, c.icmp&255)
		}
		if took := time.Since(begin); took > 600*time.Millisecond+raceSlack {
			t.Errorf("%s took %v", c.dst, took)
		}
	}
	if s := w.Stats(); s.DialErrors != 0 || len(s.Refused) == 0 {
		t.Errorf("stats %+v", s)
	}
}

// The shares: one destination never gets all, and the last gets its minimum.
func TestTCPDialShares(t *testing.T) {
	s := NewStreams(StreamsConfig{})
	s.maxDials = 1000
	take := func(a byte) (n int) {
		for s.acquire(netip.AddrFrom4([4]byte{a})) {
			n++
		}
		return n
	}
	first, second := take(1), take(2)
	if first < 300 || first > 500 || second < 150 || second > 400 {
		t.Errorf("shares %d, %d of %d", first, second, s.maxDials)
	}
	total := first + second
	for a := byte(3); a < 20; a++ {
		total += take(a)
	}
	if total != s.maxDials {
		t.Errorf("%d attempts in all, want %d", total, s.maxDials)
	}
	for range first {
		s.release(netip.AddrFrom4([4]byte{1}))
	}
	if n := take(99); n < minShare {
		t.Errorf("after the first destination gave up there is room for %d", n)
	}
	s.Close()
}

const lowFiles = "FORWARDER_TEST_LOW_FILES"

// Without descriptors nothing burns, nothing that exists suffers, and service goes on when there are some again.
func TestTCPOutOfDescriptors(t *testing.T) {
	if os.Getenv(lowFiles) == "" { // a limit is the whole process's
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), lowFiles+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	w := newTCPWorld(t, nil)
	gl := w.listen(served(guest4))
	p := w.publish("127.0.0.1:0")
	l := listenTCP(t, "127.0.0.1:0")
	g, h := w.mustDial(l.at), l.accept(t)
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	// A guest's connection, and a client of the published port, while there are none.
	dialled := make(chan error, 1)
	go func() {
		c, err := w.dial(l.at, 2*patience)
		if err == nil {
			defer c.reset()
		}
		dialled <- err
	}()
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(p.Addr().Port())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both starve", func() bool { s := w.Stats(); return s.StarvedRetries > 0 && s.AcceptErrors > 0 })
	quietly(t, "starving")
	say(t, g, "x")
	hear(t, h, "x")
	for _, fd := range taken {
		_ = unix.Close(fd)
	}
	if err := recv(t, dialled, "end of the dial"); err != nil {
		t.Errorf("the guest's connection: %v", err)
	}
	answer(t, gl)
	_ = unix.Close(client)
}
