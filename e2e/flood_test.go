package e2e

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
	"rootlessnet/internal/race"
)

// TestScorecard29SYNFlood: a program inside sends 50,000 SYNs a second of connections that it never makes, and a connection
// that stands keeps 80 % of its goodput and is never silent.
func TestScorecard29SYNFlood(t *testing.T) {
	const rate = 50_000
	lasts := 3 * time.Second
	if long() {
		lasts = 10 * time.Second
	}
	_ = os.Getenv
	onEveryLink(t, func(t *testing.T, l *lab) {
		refusing, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		var got atomic.Int64
		srv, _ := l.serveFunc(l.There, at(topo.There4, 0), func(c *net.TCPConn) {
			b := make([]byte, 128<<10)
			for {
				n, err := c.Read(b)
				if got.Add(int64(n)); err != nil {
					return
				}
			}
		})
		s := l.start()
		want(s, guest.OK, guest.Upload{To: guest.To(srv)})
		for _, c := range []struct {
			name string
			to   []netip.AddrPort
		}{
			{"that is silent", []netip.AddrPort{at(topo.Blackhole4, 80)}},
			{"that refuses", []netip.AddrPort{at(topo.There4, 9)}},
			{"that answers", []netip.AddrPort{refusing}},
			{"many", manyPorts(topo.There4)},
		} {
			time.Sleep(500 * time.Millisecond)
			before := rates(&got, lasts)
			done := make(chan int, 1)
			go func() { n, _ := guest.Do(s.inside, guest.FloodSYNs{To: c.to, Rate: rate, Lasts: lasts}); done <- n }()
			during := rates(&got, lasts)
			sent := <-done
			share := float64(during.mean) / float64(before.mean)
			t.Logf("%s: %d SYNs, goodput %d -> %d MB/s, %.0f %%, at least %d", c.name, sent, before.mean>>20, during.mean>>20, share*100, during.least>>20)
			if share < 0.8 && !race.Enabled {
				t.Errorf("a flood to an address %s leaves %.0f %% of the goodput", c.name, share*100)
			}
			if during.least == 0 {
				t.Errorf("a flood to an address %s silences the connection", c.name)
			}
		}
		other, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s.wantEcho(other, "afterwards")
	})
}

// manyPorts are destinations that refuse.
func manyPorts(a netip.Addr) (to []netip.AddrPort) {
	for i := range uint16(1000) {
		to = append(to, at(a, 100+i))
	}
	return to
}

// rate is a goodput in bytes a second.
type rate struct{ mean, least int64 }

// rates samples a counter of bytes.
func rates(n *atomic.Int64, lasts time.Duration) (r rate) {
	const sample = 250 * time.Millisecond
	r.least = 1 << 62
	begin, first := time.Now(), n.Load()
	for last := first; time.Since(begin) < lasts; {
		time.Sleep(sample)
		now := n.Load()
		r.least = min(r.least, (now-last)*int64(time.Second/sample))
		last = now
	}
	r.mean = int64(float64(n.Load()-first) / time.Since(begin).Seconds())
	return r
}

var _ = io.EOF
