package tcp

import (
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

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/race"
)

// A pump that waits must use no processor time, whatever it waits for.
func TestTCPWaitsUseNoProcessorTime(t *testing.T) {
	w := newWorld(t, nil)
	w.pair() // idle
	g1, h1 := w.pair()
	_ = g1.CloseWrite() // half closed by the guest
	forwardlab.ExpectEOF(t, h1)
	g2, h2 := w.pair()
	_ = h2.CloseWrite() // half closed by the host
	forwardlab.ExpectEOF(t, g2)
	g3, h3 := w.pair()
	n3 := forwardlab.Fill(t, g3) // the host's end does not read
	g4, h4 := w.pair()
	n4 := forwardlab.Fill(t, h4) // the guest does not read
	g5, h5 := w.pair()
	n5g, n5h := forwardlab.Fill(t, g5), forwardlab.Fill(t, h5)
	forwardlab.Quietly(t, "standing connections")
	// Every connection then goes on.
	forwardlab.SendString(t, h1, "x")
	forwardlab.Expect(t, g1, "x")
	forwardlab.SendString(t, g2, "x")
	forwardlab.Expect(t, h2, "x")
	for _, c := range []struct {
		net.Conn
		sent int
	}{{h3, n3}, {g4, n4}, {g5, n5h}, {h5, n5g}} {
		_ = c.SetReadDeadline(time.Now().Add(forwardlab.Patience))
		if n, err := io.CopyN(io.Discard, c, int64(c.sent)); err != nil {
			t.Errorf("after a stall: %d bytes of %d, %v", n, c.sent, err)
		}
	}
}

// A sender is blocked before it fills our memory if its receiver does not read.
func TestTCPMemoryIsBounded(t *testing.T) {
	const (
		conns = 2
		limit = 40 << 20 // bytes for each: the buffers of the test's own stack, which grow to 16 MiB, and of ours
	)
	w := newWorld(t, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	sent := 0
	for range conns {
		g, h := w.pair()
		sent += forwardlab.Fill(t, g)
		sent += forwardlab.Fill(t, h)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int(after.HeapAlloc) - int(before.HeapAlloc); held > conns*limit {
		t.Errorf("%d MiB on the heap after %d MiB were sent and not read", held>>20, sent>>20)
	}
}

func TestTCPThousandIdle(t *testing.T) {
	conns := 1000
	if race.Enabled {
		conns = 300
	}
	w := newWorld(t, nil)
	l := forwardlab.NewServer(t, "127.0.0.1:0")
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
			h, err := l.TCPListener.Accept()
			if err != nil {
				accepted <- err
				return
			}
			hosts = append(hosts, h)
		}
		accepted <- nil
	}()
	for range conns {
		w.guest.MustDial(l.At)
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	forwardlab.Eventually(t, "all are joined", func() bool { return w.Stats().Active == conns })
	forwardlab.Quietly(t, "idle connections")
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	// CheckLeaks reports what is left behind.
}

// Close ends what is under way in every state.
func TestTCPCloseWithEverythingUnderWay(t *testing.T) {
	w := newWorld(t, func(c *worldConfig) {
		c.Resolver = resolver{func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }}
	})
	g, _ := w.pair()
	forwardlab.Fill(t, g)
	_, h := w.pair()
	forwardlab.Fill(t, h)
	w.guest.MustDial(netip.AddrPortFrom(forwardlab.Gateway4, 53))
	g2, h2 := w.pair()
	go func() { _ = forwardlab.Transfer(g2, h2, 1<<30, 1) }()
	w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	w.wire.OnlySYNs.Store(true) // from here on no handshake is completed
	forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	l := forwardlab.NewServer(t, "127.0.0.1:0")
	dialled := make(chan struct{})
	go func() {
		defer close(dialled)
		_, _ = w.guest.Dial(l.At, 100*time.Millisecond)
	}()
	l.Accept(t)
	<-dialled
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	_, _ = g2.Close(), h2.Close()
}

func TestTCPDNS(t *testing.T) {
	w := newWorld(t, func(c *worldConfig) {
		c.Resolver = resolver{func(c net.Conn) { _, _ = io.Copy(c, c) }}
	})
	for _, gw := range []netip.Addr{forwardlab.Gateway4, forwardlab.Gateway6} {
		g := w.guest.MustDial(netip.AddrPortFrom(gw, 53))
		forwardlab.SendString(t, g, "question")
		forwardlab.Expect(t, g, "question")
		_ = g.CloseWrite()
		forwardlab.ExpectEOF(t, g)
	}
}

// Each verdict of policy has its own answer.
func TestTCPVerdicts(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		dst  string
		icmp uint32 // type<<8 | code
		want syscall.Errno
	}{
		{"10.0.2.77:9", 3<<8 | 1, syscall.EHOSTUNREACH},         // no such host
		{"[fd00::77]:9", 1<<8 | 3, syscall.EHOSTUNREACH},        // nor there
		{"169.254.169.254:80", 3<<8 | 13, syscall.EHOSTUNREACH}, // prohibited
	} {
		w.wire.ICMP.Store(0)
		begin := time.Now()
		if _, err := w.guest.Dial(forwardlab.AP(c.dst), 500*time.Millisecond); err == nil {
			t.Errorf("%s: connected", c.dst)
		}
		if got := w.wire.ICMP.Load(); got != c.icmp {
			t.Errorf("%s: ICMP %d/%d, want %d/%d", c.dst, got>>8, got&255, c.icmp>>8, c.icmp&255)
		}
		if took := time.Since(begin); took > 600*time.Millisecond+forwardlab.RaceSlack {
			t.Errorf("%s took %v", c.dst, took)
		}
	}
	if s := w.Stats(); s.DialErrors != 0 || len(s.Refused) == 0 {
		t.Errorf("stats %+v", s)
	}
}

const lowFiles = "FORWARDER_TEST_LOW_FILES"

// Without descriptors no loop spins, existing connections go on, and new ones are served when descriptors are free again.
func TestTCPOutOfDescriptors(t *testing.T) {
	if os.Getenv(lowFiles) == "" { // a limit is the whole process's
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), lowFiles+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	w := newWorld(t, nil)
	gl := w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	l := forwardlab.NewServer(t, "127.0.0.1:0")
	g, h := w.guest.MustDial(l.At), l.Accept(t)
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
		c, err := w.guest.Dial(l.At, 2*forwardlab.Patience)
		if err == nil {
			defer c.Reset()
		}
		dialled <- err
	}()
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(p.Addr().Port())}); err != nil {
		t.Fatal(err)
	}
	forwardlab.Eventually(t, "both wait for a descriptor", func() bool { s := w.Stats(); return s.DialRetries > 0 && s.AcceptErrors > 0 })
	forwardlab.Quietly(t, "starving")
	forwardlab.SendString(t, g, "x")
	forwardlab.Expect(t, h, "x")
	for _, fd := range taken {
		_ = unix.Close(fd)
	}
	if err := forwardlab.Receive(t, dialled, "end of the dial"); err != nil {
		t.Errorf("the guest's connection: %v", err)
	}
	forwardlab.Answer(t, gl)
	_ = unix.Close(client)
}
