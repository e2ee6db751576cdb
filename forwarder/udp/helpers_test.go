package udp

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rootlessnet/policy"
	"rootlessnet/stack"
)

var (
	gw4    = netip.MustParseAddr("10.0.2.2")
	gw6    = netip.MustParseAddr("fd00::2")
	guest4 = netip.MustParseAddrPort("10.0.2.100:4000")
	guest6 = netip.MustParseAddrPort("[fd00::100]:4000")
)

const patience = 3 * time.Second

type udpErr struct {
	flow    stack.Flow
	payload []byte
	e       stack.ICMPError
}

type echoErr struct {
	req stack.Echo
	e   stack.ICMPError
}

// fakeGuest keeps a copy of all that is written to it.
type fakeGuest struct {
	udp    chan stack.Datagram
	udpErr chan udpErr
	echo   chan stack.Echo
	echErr chan echoErr
}

func newFakeGuest() *fakeGuest {
	return &fakeGuest{make(chan stack.Datagram, 4096), make(chan udpErr, 4096), make(chan stack.Echo, 4096), make(chan echoErr, 4096)}
}

func (g *fakeGuest) WriteUDP(d *stack.Datagram) error {
	c := *d
	c.Payload = append(bytes.Clone(d.Payload), bytes.Join(d.More, nil)...)
	c.More = nil
	g.udp <- c
	return nil
}

func (g *fakeGuest) WriteUDPError(f stack.Flow, payload []byte, e stack.ICMPError) error {
	g.udpErr <- udpErr{f, bytes.Clone(payload), e}
	return nil
}

func (g *fakeGuest) WriteEchoReply(e *stack.Echo) error {
	c := *e
	c.Payload = bytes.Clone(e.Payload)
	g.echo <- c
	return nil
}

func (g *fakeGuest) WriteEchoError(req *stack.Echo, e stack.ICMPError) error {
	c := *req
	c.Payload = bytes.Clone(req.Payload)
	g.echErr <- echoErr{c, e}
	return nil
}

func recv[T any](t testing.TB, c chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
	}
	return v
}

func none[T any](t testing.TB, c chan T, what string) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("unexpected %s: %+v", what, v)
	case <-time.After(50 * time.Millisecond):
	}
}

// judgeFunc allows everything as it is unless told otherwise.
type judgeFunc func(p policy.Proto, src, dst netip.AddrPort) policy.Verdict

func (f judgeFunc) Judge(p policy.Proto, src, dst netip.AddrPort) policy.Verdict {
	if f != nil {
		return f(p, src, dst)
	}
	return policy.Verdict{Action: policy.Allow, Dst: dst}
}

// world is a Datagrams on a fake guest, with a clock that stands still.
type world struct {
	*Datagrams
	g     *fakeGuest
	clock atomic.Int64
}

func (w *world) advance(d time.Duration) { w.clock.Add(int64(d)) }

// newWorld also checks at the end that no goroutine and no descriptor is left.
func newWorld(t testing.TB, change func(*DatagramsConfig)) *world {
	t.Helper()
	fds, routines := countFDs(t), runtime.NumGoroutine()
	w := &world{g: newFakeGuest()}
	cfg := DatagramsConfig{Guest: w.g, Policy: judgeFunc(nil), Gateway4: gw4, Gateway6: gw6}
	if change != nil {
		change(&cfg)
	}
	x, err := newDatagrams(cfg, func() time.Duration { return time.Duration(w.clock.Load()) })
	if err != nil {
		t.Fatal(err)
	}
	w.Datagrams = x
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if err := x.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: guest4, Dst: netip.MustParseAddrPort("127.0.0.1:9")}, TTL: 64}) // must not revive anything
		if n := countFDs(t); n > fds {
			t.Errorf("%d descriptors before, %d after", fds, n)
		}
		for range 50 {
			if runtime.NumGoroutine() <= routines {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%d goroutines before, %d after", routines, runtime.NumGoroutine())
	})
	return w
}

func countFDs(t testing.TB) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// host is a UDP socket of the host.
type host struct {
	*net.UDPConn
	addr netip.AddrPort
}

func listenHost(t testing.TB, addr string) *host {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap(addr)))
	if err != nil {
		t.Fatal(err)
	}
	h := &host{c, c.LocalAddr().(*net.UDPAddr).AddrPort()}
	// Before the descriptors are counted: cleanups run in reverse, so hosts are made before worlds.
	t.Cleanup(func() { _ = c.Close() })
	return h
}

func (h *host) read(t testing.TB) (string, netip.AddrPort) {
	t.Helper()
	_ = h.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 65536)
	n, from, err := h.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func (h *host) quiet(t testing.TB) {
	t.Helper()
	_ = h.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 65536)
	if n, from, err := h.ReadFromUDPAddrPort(b); err == nil {
		t.Fatalf("unexpected %q from %v", b[:n], from)
	}
}

func (h *host) write(t testing.TB, to netip.AddrPort, s string) {
	t.Helper()
	if _, err := h.WriteToUDPAddrPort([]byte(s), to); err != nil {
		t.Fatal(err)
	}
}

func (w *world) send(src, dst netip.AddrPort, s string) {
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: src, Dst: dst}, Payload: []byte(s), TTL: 64})
}

// knock is a datagram to where nobody listens.
type knock struct {
	src, dst netip.AddrPort
	before   uint64 // ICMP errors of the kernel
}

func (w *world) knock(t testing.TB, src, dst netip.AddrPort) knock {
	t.Helper()
	k := knock{src, dst, unreachables(t, dst.Addr().Is4())}
	w.send(src, dst, "knock")
	return k
}

// refusal waits for the error about a knock. The kernel may lose a datagram: if it has sent no error, there is another
// knock. One that it has sent must have been told.
func (w *world) refusal(t testing.TB, k knock) udpErr {
	t.Helper()
	for range 5 {
		select {
		case e := <-w.g.udpErr:
			return e
		case <-time.After(patience):
		}
		if n := unreachables(t, k.dst.Addr().Is4()) - k.before; n > 0 {
			t.Fatalf("no ICMP error within %v, after %d of the kernel: %+v", patience, n, w.Stats())
		}
		t.Logf("the kernel has sent no ICMP error: %+v", w.Stats())
		k = w.knock(t, k.src, k.dst)
	}
	t.Fatal("no ICMP error, ever")
	panic("unreachable")
}

// unreachables is how many errors "destination unreachable" the kernel has sent (RFC 4293).
func unreachables(t testing.TB, v4 bool) (n uint64) {
	t.Helper()
	file, field := "/proc/net/snmp6", "Icmp6OutDestUnreachs"
	if v4 {
		file, field = "/proc/net/snmp", "OutDestUnreachs"
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if i := slices.Index(names, field); v4 && i > 0 {
			n, err = strconv.ParseUint(words[i], 10, 64)
			break
		} else if !v4 && len(words) == 2 && words[0] == field {
			n, err = strconv.ParseUint(words[1], 10, 64)
			break
		}
		names = words
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) drops(r DropReason) uint64 { return w.count.drops[r].Load() }

// waitDrop waits for a counter that another goroutine moves.
func (w *world) waitDrop(t testing.TB, r DropReason, n uint64) {
	t.Helper()
	for end := time.Now().Add(patience); w.drops(r) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("drops for %v: %d, want %d", r, w.drops(r), n)
		}
	}
}
