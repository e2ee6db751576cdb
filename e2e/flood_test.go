package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
	"rootlessnet/internal/race"
)

// TestScorecard29SYNFlood: a program inside sends 50,000 SYNs a second of connections that it never makes, and a connection
// that stands keeps 80 % of its goodput. Time with and without the flood alternates, since what else the machine does changes
// the goodput, too; and on a busy machine the best of some tries counts.
func TestScorecard29SYNFlood(t *testing.T) {
	const (
		rate    = 50_000
		windows = 4
		window  = 400 * time.Millisecond
		tries   = 8
		least   = 0.8
	)
	begin := 500 * time.Millisecond // what the first SYNs cost is part of the first window
	if long() {
		begin = 10 * time.Second
	}
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		answering, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		var got atomic.Int64
		srv, _ := l.serveFunc(l.There, at(topo.There4, 0), func(c *net.TCPConn) { countBytes(c, &got) })
		s := l.start(asRoot)
		want(s, guest.OK, guest.Upload{To: guest.To(srv)})
		flood := func(to []netip.AddrPort, lasts time.Duration) (moved int64) {
			before := got.Load()
			if n := do(s, guest.FloodSYNs{To: to, Rate: rate, Lasts: lasts}); n < int(rate*lasts.Seconds())*3/4 {
				t.Logf("only %d SYNs were sent in %v", n, lasts)
			}
			return got.Load() - before
		}
		share := func(to []netip.AddrPort) float64 {
			var without, with int64
			for range windows {
				before := got.Load()
				time.Sleep(window)
				without += got.Load() - before
				with += flood(to, window)
			}
			return float64(with) / float64(without)
		}
		for _, c := range []struct {
			name string
			to   []netip.AddrPort
		}{
			{"a silent address", []netip.AddrPort{at(topo.Blackhole4, 80)}},
			{"a closed port", []netip.AddrPort{at(topo.There4, 9)}},
			{"a server", []netip.AddrPort{answering}},
			{"a thousand ports", manyPorts(topo.There4)},
		} {
			if moved := flood(c.to, begin); moved == 0 {
				t.Errorf("a flood to %s silences the connection", c.name)
			}
			var best float64
			for range tries {
				if best = max(best, share(c.to)); best >= least {
					break
				}
			}
			t.Logf("a flood to %s leaves %.0f %% of the goodput", c.name, best*100)
			if best < least && !race.Enabled {
				t.Errorf("a flood to %s leaves %.0f %% of the goodput", c.name, best*100)
			}
		}
		if s.counter(tcpSYNLimited) == 0 {
			t.Error("the flood is not counted")
		}
		eventually(t, 10*time.Second, func() string {
			if got := s.exchange(answering); !echoed(got) {
				return fmt.Sprintf("afterwards: %+v", got)
			}
			return ""
		})
	})
}

func countBytes(c *net.TCPConn, n *atomic.Int64) {
	defer c.Close()
	b := make([]byte, 128<<10)
	for {
		m, err := c.Read(b)
		if n.Add(int64(m)); err != nil {
			return
		}
	}
}

// manyPorts are destinations that refuse.
func manyPorts(a netip.Addr) (to []netip.AddrPort) {
	for i := range uint16(1000) {
		to = append(to, at(a, 100+i))
	}
	return to
}

// TestBurstOfConnects: programs that connect at the same time are no flood.
func TestBurstOfConnects(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		needFiles(t, 8000)
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.start()
		for _, n := range []int{16, 1000, 1000} {
			got := do(s, guest.ConnectTogether{To: guest.To(srv), Count: n})
			t.Logf("%d at once: the last after %v", n, got.Took)
			if got.Outcome != guest.OK {
				t.Errorf("%d connects at once: %v after %v", n, got.Outcome, got.Took)
			}
		}
		if n := s.counter(tcpSYNLimited); n != 0 {
			t.Errorf("%d SYNs of them were dropped", n)
		}
	})
}
