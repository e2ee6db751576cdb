package e2e

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
	"rootlessnet/internal/race"
)

// TestScorecard48UnreadConnections: many connections whose receivers never read, in both directions, take a bounded memory in
// all. Others go on beside them, on every datapath, and with a TTL that has them take the stack path in the default mode.
func TestScorecard48UnreadConnections(t *testing.T) {
	n := 1000 // of each direction
	if race.Enabled {
		n = 200
	}
	for _, c := range []struct {
		name, datapath string
		socket         guest.Socket
	}{
		{"splice", "splice", guest.Socket{}},
		{"stack", "stack", guest.Socket{}},
		{"default, TTL 65", "auto", guest.Socket{TTL: 65}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLabOn(t, "auto", c.datapath)
			needFiles(t, uint64(10*n))
			silent, _ := l.serve(l.There, at(topo.There4, 0), guest.Silent)
			var poured atomic.Int64
			pouring, _ := l.serveFunc(l.There, at(topo.There4, 0), func(c *net.TCPConn) { poured.Add(int64(guest.Fill{}.On(c).Bytes)); unread <- c })
			echo, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
			s := l.start()
			want(s, guest.Held{Count: 1}, guest.Hold{To: guest.To(echo), Count: 1})
			before := s.rss()
			out := do(s, guest.HoldUnread{To: guest.To(silent), Count: n, Send: true, Socket: c.socket})
			in := do(s, guest.HoldUnread{To: guest.To(pouring), Count: n, Socket: c.socket})
			time.Sleep(2 * time.Second)
			if out.Count != n || in.Count != n {
				t.Errorf("of %d connections each, %+v send and %+v receive", n, out, in)
			}
			grown := s.rss() - before
			counters := s.counters()
			t.Logf("%d MiB were sent and %d MiB received unread; the supervisor grew by %d MiB, granted %d MiB, refused %d", out.Bytes>>20, poured.Load()>>20, grown>>20,
				counters.of(tcpBuffers)>>20, counters.of(tcpBuffersRefused))
			// The buffers, as much again for the collector, and what 2,000 connections cost when they are idle.
			if most := 2*64<<20 + 2*n*60_000; !race.Enabled && grown > most {
				t.Errorf("they take %d MiB, more than %d", grown>>20, most>>20)
			}
			s.wantHeldAnswer(1)
			begin := time.Now()
			s.wantEcho(echo, "beside them")
			if took := time.Since(begin); took > time.Second {
				t.Errorf("beside them an exchange took %v", took)
			}
		})
	}
}

// TestScorecard48SingleBytes: connections whose receivers never read, and whose senders send single bytes, take no more than the
// budget either: the memory of a segment counts, however little it carries.
func TestScorecard48SingleBytes(t *testing.T) {
	const (
		n, bytes = 500, 600
		pause    = 8 * time.Millisecond // long enough for each byte to be read alone
	)
	for _, c := range []struct {
		name, datapath string
		ttl            int
	}{
		{"stack", "stack", 0},
		{"default, TTL 65", "auto", 65},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLabOn(t, "auto", c.datapath)
			needFiles(t, 10*n)
			var sent atomic.Int64
			dripping, _ := l.serveFunc(l.There, at(topo.There4, 0), func(c *net.TCPConn) {
				_, _ = c.Write(make([]byte, 4<<10)) // more than the guest's kernel takes: the rest and all further ones wait in the supervisor
				for range bytes {
					if _, err := c.Write([]byte{1}); err != nil {
						break
					}
					sent.Add(1)
					time.Sleep(pause)
				}
				unread <- c
			})
			echo, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
			s := l.start()
			want(s, guest.Held{Count: 1}, guest.Hold{To: guest.To(echo), Count: 1})
			before := s.rss()
			in := do(s, guest.HoldUnread{To: guest.To(dripping), Count: n, Socket: guest.Socket{TTL: c.ttl, Receive: 1}})
			if in.Count != n {
				t.Errorf("of %d connections: %+v", n, in)
			}
			eventually(t, time.Minute, func() string {
				if got := sent.Load(); got < n*bytes {
					return fmt.Sprintf("%d bytes were sent", got)
				}
				return ""
			})
			time.Sleep(time.Second)
			grown, counters := s.rss()-before, s.counters()
			t.Logf("the supervisor grew by %d MiB, granted %d MiB, refused %d", grown>>20, counters.of(tcpBuffers)>>20, counters.of(tcpBuffersRefused))
			if most := 2*64<<20 + n*60_000; !race.Enabled && grown > most { // as above
				t.Errorf("they take %d MiB, more than %d", grown>>20, most>>20)
			}
			s.wantHeldAnswer(1)
			s.wantEcho(echo, "beside them")
		})
	}
}

// unread keeps connections of a server that are never read.
var unread = make(chan *net.TCPConn, 1<<16)
