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
	onEveryRoad(t, func(t *testing.T, l *lab) {
		const limit, n = 128, 1000
		s := l.startLimited(limit, "-p", "8080:80", "-p", "8081:81", "-p", "8082:82")
		s.do("serve-tcp", ":80")
		s.do("serve-half", ":81")
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			s.want(strconv.Itoa(n), "churn", srv, n)
			for i := range n {
				c := l.connectTo(l.There, at(f.here, 8080))
				_ = c.(*net.TCPConn).SetLinger(0)
				if got, err := guest.Exchange(c, "x"); err != nil || !strings.HasSuffix(got, " x") {
					t.Fatalf("connection %d to the published port: %q, %v", i, got, err)
				}
				c.Close()
			}
			half, _ := l.serve(l.There, at(f.there, 0), guest.SumAfterEOF)
			for range 50 {
				s.want("same", "half", half, 300<<10)
				if got, err := guest.HalfClose(l.connectTo(l.There, at(f.here, 8081)), 300<<10); err != nil || got != "same" {
					t.Fatalf("bulk to the published port: %q, %v", got, err)
				}
			}
			for range limit {
				s.wantFirst("ECONNREFUSED", "connect", at(f.there, 9))
				c, err := l.There.Dial("tcp", at(f.here, 8082), 5*time.Second) // nobody listens there
				if err == nil {
					_, err = c.Read(make([]byte, 1))
					c.Close()
				}
				if got := guest.Errno(orNil(err)); got != "ECONNRESET" && got != "ECONNREFUSED" {
					t.Fatalf("a closed port: %v", err)
				}
			}
		}
	})
}

// TestInitSleeps: the process inside has no part in connections. Woken for each, it would take a processor from those who have.
func TestInitSleeps(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		const n = 500
		s := l.start()
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		pid := initOf(t, s.cmd.Process.Pid)
		before := switches(t, pid)
		s.want(strconv.Itoa(n), "churn", srv, n)
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

// switches is how often the threads of a process have gone to sleep.
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

// TestSlowReaders: what nobody reads stays with its sender; the supervisor neither buffers it nor lets others wait.
func TestSlowReaders(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		const n = 6
		// The kernel's buffers are its own; those of the userspace stack grow to some MiB for each direction of a connection.
		most := 8 << 20
		if l.datapath == "stack" {
			most = 2 * n * 8 << 20
		}
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		var mu sync.Mutex
		var slow []*net.TCPConn
		deaf, _ := l.serve(l.There, at(topo.There4, 0), func(c *net.TCPConn) {
			mu.Lock()
			slow = append(slow, c)
			mu.Unlock()
		})
		s := l.start("-p", "8080:80", "-p", "8081:81")
		s.do("serve-silent", ":80")
		s.do("serve-tcp", ":81")
		s.do("exchange", srv, "hello")
		before := s.rss()
		taken, err := strconv.Atoi(s.do("fill", deaf, n))
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			if _, err := guest.Fill(l.connectTo(l.There, at(topo.Here4, 8080))); err != nil {
				t.Fatal(err)
			}
		}
		if grown := s.rss() - before; grown > most {
			t.Errorf("%d connections that nobody reads took %d bytes of the supervisor", 2*n, grown)
		}
		used := cpu(t, s.cmd.Process.Pid)
		begin := time.Now()
		if got := s.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("beside them, out: %q", got)
		}
		if got, err := guest.Exchange(l.connectTo(l.There, at(topo.Here4, 8081)), "hello"); err != nil || !strings.HasSuffix(got, " hello") {
			t.Errorf("beside them, in: %q, %v", got, err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("beside them an exchange each way took %v", took)
		}
		time.Sleep(time.Second)
		if busy := cpu(t, s.cmd.Process.Pid) - used; busy > 300*time.Millisecond {
			t.Errorf("nothing moves, and %v of a processor went by in %v", busy, time.Since(begin))
		}
		// Who reads at last gets all of it.
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
		if got != int64(taken) {
			t.Errorf("%d bytes were sent, %d arrived", taken, got)
		}
	})
}
