package udp

import (
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// world is a Path on a fake guest, with a clock that the test advances.
type world struct {
	*Path
	g      *forwardlab.FakeGuest
	budget *fdbudget.Budget
	clock  atomic.Int64
}

func (w *world) advance(d time.Duration) { w.clock.Add(int64(d)) }

// worldConfig is what a test may change.
type worldConfig struct {
	forwarder.EndpointConfig
	guest      guest // in the place of the FakeGuest
	maxSockets int   // 0: the Path's own
	limit      int64 // of descriptors
	log        *slog.Logger
}

// newWorld also checks at the end that no goroutine and no descriptor is left, and that nothing is taken from the budget.
func newWorld(t testing.TB, change func(*worldConfig)) *world {
	t.Helper()
	fds, routines := countFDs(t), runtime.NumGoroutine()
	w := &world{g: forwardlab.NewFakeGuest()}
	cfg := worldConfig{guest: w.g, limit: forwardlab.Limit}
	cfg.Policy = forwardlab.JudgeFunc(nil)
	cfg.Addresses = forwarder.Addresses{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6}
	if change != nil {
		change(&cfg)
	}
	w.budget = forwardlab.Budget(t, cfg.limit)
	f := forwardlab.NewForwarder(t, forwarder.Config{Budget: w.budget, Logger: cfg.log})
	f.AddEndpoint(cfg.EndpointConfig)
	x, err := newPath(f, cfg.guest, func() time.Duration { return time.Duration(w.clock.Load()) })
	if err != nil {
		t.Fatal(err)
	}
	if cfg.maxSockets > 0 {
		x.maxSockets = cfg.maxSockets
	}
	w.Path = x
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if err := x.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: netip.MustParseAddrPort("127.0.0.1:9")}, TTL: 64}) // must not revive anything
		if n := f.Flows.Len(); n > 0 {
			t.Errorf("%d flows are still in the table", n)
		}
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

func (w *world) send(src, dst netip.AddrPort, s string) {
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: src, Dst: dst}, Payload: []byte(s), TTL: 64})
}

// probe is a datagram to a port on which nothing listens.
type probe struct {
	src, dst netip.AddrPort
	before   uint64 // ICMP errors of the kernel
}

func (w *world) probe(t testing.TB, src, dst netip.AddrPort) probe {
	t.Helper()
	k := probe{src, dst, unreachables(t, dst.Addr().Is4())}
	w.send(src, dst, "probe")
	return k
}

// refusal waits for the error about a probe. The kernel may lose a datagram: if it has sent no error, there is another
// probe. One that it has sent must have reached the guest.
func (w *world) refusal(t testing.TB, k probe) forwardlab.UDPError {
	t.Helper()
	for range 5 {
		select {
		case e := <-w.g.UDPErr:
			return e
		case <-time.After(forwardlab.Patience):
		}
		if n := unreachables(t, k.dst.Addr().Is4()) - k.before; n > 0 {
			t.Fatalf("no ICMP error within %v, after %d of the kernel: %+v", forwardlab.Patience, n, w.Stats())
		}
		t.Logf("the kernel has sent no ICMP error: %+v", w.Stats())
		k = w.probe(t, k.src, k.dst)
	}
	t.Fatal("no ICMP error after all probes")
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
	for end := time.Now().Add(forwardlab.Patience); w.drops(r) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("drops for %v: %d, want %d", r, w.drops(r), n)
		}
	}
}
