package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// TestShortConnectionsLeakNothing opens many more connections than the supervisor may have descriptors, with bulk on some,
// so that a descriptor lost on any of them would be missed.
func TestShortConnectionsLeakNothing(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		const limit, n = 128, 1000
		s := l.startLimited(limit, "-p", "8080:80", "-p", "8081:81", "-p", "8082:82")
		s.listenTCP(guest.Echo, 80)
		s.listenTCP(guest.SumAfterEnd, 81)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			s.wantChurn(srv, n)
			for i := range n {
				c := l.connectTo(l.There, at(f.here, 8080))
				_ = c.(*net.TCPConn).SetLinger(0)
				if got := (guest.Exchange{Text: "hello"}).On(c); !echoed(got) {
					t.Fatalf("connection %d to the published port: %+v", i, got)
				}
				c.Close()
			}
			half, _ := l.serve(l.There, at(f.there, 0), guest.SumAfterEnd)
			for range 50 {
				s.wantHalfClose(half, 300<<10)
				if got := (guest.HalfClose{Bytes: 300 << 10}).On(l.connectTo(l.There, at(f.here, 8081))); got != guest.OK {
					t.Fatalf("bulk to the published port: %v", got)
				}
			}
			for range limit {
				s.wantConnect(guest.Refused, at(f.there, 9))
				if got := l.closedPort(at(f.here, 8082)); got != guest.Reset && got != guest.Refused {
					t.Fatalf("a published port on which no server listens inside: %v", got)
				}
			}
		}
	})
}

// TestInitSleeps: the init process inside takes no part in connections. If each woke it, it would take processor time from
// the command and the supervisor.
func TestInitSleeps(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		const n = 500
		s := l.start()
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		pid := initOf(t, s.cmd.Process.Pid)
		before := switches(t, pid)
		s.wantChurn(srv, n)
		if woken := switches(t, pid) - before; woken > n/10 {
			t.Errorf("init was woken %d times by %d connections", woken, n)
		}
	})
}

// initOf finds the init that supervisor has started.
func initOf(t *testing.T, supervisor int) int {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if called(pid) == "rootless-init" && parent(t, pid) == supervisor {
			return pid
		}
	}
	t.Fatalf("process %d has no init", supervisor)
	return 0
}

// switches counts how often the threads of a process have blocked (voluntary context switches).
func switches(t *testing.T, pid int) (n int) {
	t.Helper()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range threads {
		text, _ := os.ReadFile(file)
		_, count, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		count, _, _ = strings.Cut(count, "\n")
		k, err := strconv.Atoi(strings.TrimSpace(count))
		if err != nil {
			t.Fatal(file, err)
		}
		n += k
	}
	return n
}

// TestSlowReaders: data that the receiver does not read stays with its sender; the supervisor neither buffers it nor delays
// other connections.
func TestSlowReaders(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		const n = 6
		// The kernel's buffers are its own; those of the userspace stack grow to some MiB for each direction of a connection.
		most := 8 << 20
		if l.datapath == "stack" {
			most = 2 * n * 8 << 20
		}
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		var mu sync.Mutex
		var slow []*net.TCPConn
		unread, _ := l.serveFunc(l.There, at(topo.There4, 0), func(c *net.TCPConn) {
			mu.Lock()
			slow = append(slow, c)
			mu.Unlock()
		})
		s := l.start("-p", "8080:80", "-p", "8081:81")
		s.listenTCP(guest.Silent, 80)
		s.listenTCP(guest.Echo, 81)
		s.wantEcho(srv)
		before := s.rss()
		taken := do(s, guest.Fill{To: guest.To(unread), Count: n})
		if taken.Outcome != guest.OK {
			t.Fatal(taken)
		}
		for range n {
			if got := (guest.Fill{}).On(l.connectTo(l.There, at(topo.Here4, 8080))); got.Outcome != guest.OK {
				t.Fatal(got)
			}
		}
		if grown := s.rss() - before; grown > most {
			t.Errorf("%d connections with receivers that do not read took %d bytes of the supervisor", 2*n, grown)
		}
		used := cpu(t, s.cmd.Process.Pid)
		begin := time.Now()
		s.wantEcho(srv, "beside them, out")
		l.wantAnswer(l.There, at(topo.Here4, 8081), "beside them, in")
		if took := time.Since(begin); took > time.Second {
			t.Errorf("beside them an exchange each way took %v", took)
		}
		time.Sleep(time.Second)
		if busy := cpu(t, s.cmd.Process.Pid) - used; busy > 300*time.Millisecond {
			t.Errorf("no data moves, and the supervisor used %v of processor time in %v", busy, time.Since(begin))
		}
		// A receiver that begins to read gets all of it.
		mu.Lock()
		defer mu.Unlock()
		var sum sync.Mutex
		var got int64
		var wg sync.WaitGroup
		for _, c := range slow {
			wg.Go(func() {
				_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
				m, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
				sum.Lock()
				got += m
				sum.Unlock()
			})
		}
		wg.Wait()
		if got != int64(taken.Bytes) {
			t.Errorf("%d bytes were sent, %d arrived", taken.Bytes, got)
		}
	})
}
