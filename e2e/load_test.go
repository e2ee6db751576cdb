package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/nettest/topo"
	"rootlessnet/internal/race"
)

// needFiles fails where this process may not open as many files as a test needs.
func needFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < n {
		skip.Missing(t, "needs %d open files, the limit is %d", n, limit.Cur)
	}
}

func idleConnections(t *testing.T, l *lab, n int) {
	srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
	s := l.start()
	before := s.rss()
	if got := s.hold(srv, n); got != (guest.Held{Count: n}) {
		t.Fatalf("held %+v of %d; stderr:\n%s", got, n, s.stderr)
	}
	s.wantHeldAnswer(n)
	t.Logf("%d connections: %d KiB each", n, (s.rss()-before)/n>>10)
	// 600 MB for 10,000, and what a small number costs at least.
	if grown, most := s.rss()-before, 60_000*n+16<<20; !race.Enabled && grown > most {
		t.Errorf("%d idle connections take %d bytes, more than %d", n, grown, most)
	}
}

func TestScorecard24ThousandIdleConnections(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		needFiles(t, 2200)
		idleConnections(t, l, 1000)
	})
}

func TestScorecard25TenThousandIdleConnections(t *testing.T) {
	n := 10000
	if race.Enabled {
		n = 3000
	}
	needFiles(t, uint64(n)+200)
	onEveryDatapath(t, func(t *testing.T, l *lab) { idleConnections(t, l, n) })
}

// cpu is the processor time a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// proc(5): utime and stime are fields 14 and 15, in ticks of 10 ms; the second, comm, ends with a parenthesis.
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

func TestScorecard27OutOfDescriptors(t *testing.T) {
	onEveryDatapath(t, outOfDescriptors)
}

// startLimited is start with a limit of open files. The hard limit too, as the runtime raises the soft one to it.
func (l *lab) startLimited(limit int, flags ...string) *sandbox {
	l.Helper()
	const name = "no-files"
	argv := append([]string{filepath.Join(bins, "rootless-run"), "--name", name}, l.flags...)
	argv = append(append(append(argv, flags...), "--"), agentProgram()...)
	cmd := l.Here.Command(append([]string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh"}, argv...)...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+l.runtime)
	return l.agent(name, cmd)
}

func outOfDescriptors(t *testing.T, l *lab) {
	const limit, clients = 64, 100
	srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
	s := l.startLimited(limit, "-p", "8080:80")
	s.listenTCP(guest.Echo, 80)
	conns := make([]net.Conn, 0, clients)
	for range clients {
		if c, err := l.There.Dial("tcp", at(topo.Here4, 8080).String(), 2*time.Second); err == nil {
			conns = append(conns, c)
		}
	}
	time.Sleep(500 * time.Millisecond)
	begin, used := time.Now(), cpu(t, s.cmd.Process.Pid)
	time.Sleep(2 * time.Second)
	if share := float64(cpu(t, s.cmd.Process.Pid)-used) / float64(time.Since(begin)); share > 0.2 {
		t.Errorf("uses %.0f %% of a processor while out of descriptors", share*100)
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, 2*time.Second, func() string {
		c, err := l.There.Dial("tcp", at(topo.Here4, 8080).String(), time.Second)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		if got := (guest.Exchange{Text: "hello"}).On(c); !echoed(got) {
			return fmt.Sprintf("after the clients left: %+v", got)
		}
		return ""
	})
	s.wantEcho(srv, "afterwards, out of the sandbox")
}

func TestScorecard30BlackHole(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.start()
		do(s, guest.DialMany{To: guest.To(at(topo.Blackhole4, 80)), Count: 200})
		most := 100 * time.Millisecond
		if race.Enabled {
			most = 400 * time.Millisecond
		}
		if got := do(s, guest.Connect{To: guest.To(srv)}); got.Outcome != guest.OK || got.Took.Truncate(time.Millisecond) > most {
			t.Errorf("during 200 dials to a destination that does not answer: %v after %v; at most %v", got.Outcome, got.Took, most)
		}
	})
}

func TestScorecard31HalfOpens(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.start(asRoot)
		before := s.rss()
		want(s, 10000, guest.SendSYNs{To: at(topo.Blackhole4, 80), Count: 10000})
		s.wantEcho(srv, "beside 10,000 half-opens")
		const most = 100 << 20
		if grown := s.rss() - before; !race.Enabled && grown > most {
			t.Errorf("10,000 half-opens took %d bytes, more than %d", grown, most)
		}
	})
}

func TestScorecard32UDPFlows(t *testing.T) {
	flows := 5000
	if long() {
		flows = 50000
	}
	l := newLab(t)
	srv, _ := l.serveUDP(l.There, at(topo.There4, 0))
	s := l.start()
	before := s.rss()
	if answered := do(s, guest.AskUDPFromMany{To: guest.To(srv), Flows: flows}); answered < flows*99/100 {
		t.Errorf("%d of %d flows were answered", answered, flows)
	}
	if n := s.counter(udpFlows); n > 16384 {
		t.Errorf("%d flows are kept", n)
	}
	const most = 150 << 20
	if grown := s.rss() - before; grown > most {
		t.Errorf("grew by %d bytes, more than %d", grown, most)
	}
	if got := s.askUDP(srv, "hello", 0); !echoed(got) {
		t.Errorf("afterwards: %+v", got)
	}
}

// TestScorecard33Churn opens and closes connections out of and into the sandbox, and expects that the sockets, the memory
// and the counters of live flows have their values of before.
func TestScorecard33Churn(t *testing.T) {
	lasts := 6 * time.Second
	if long() {
		lasts = 5 * time.Minute
	}
	onEveryDatapath(t, func(t *testing.T, l *lab) { churnFor(t, l, lasts) })
}

func churnFor(t *testing.T, l *lab, lasts time.Duration) {
	srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
	s := l.start("-p", "8080:80")
	s.listenTCP(guest.Echo, 80)
	// The end that closes first keeps its port in TIME_WAIT for a minute, and there are not enough ports for that.
	if err := l.There.Sysctl("ipv4/tcp_tw_reuse", "1"); err != nil {
		t.Fatal(err)
	}
	// A first round fills the pools.
	churn(t, l, s, srv, 2*time.Second)
	time.Sleep(time.Second)
	sockets, rss := l.sockets(), s.rss()
	n := churn(t, l, s, srv, lasts)
	t.Logf("%.0f connections a second", float64(n)/lasts.Seconds())
	eventually(t, 10*time.Second, func() string {
		if now := l.sockets(); now > sockets+sockets/20+2 {
			return fmt.Sprintf("%d sockets, before %d", now, sockets)
		}
		return ""
	})
	// 5 %, and what the garbage collector has not freed yet.
	if now := s.rss(); now > rss+rss/20+8<<20 {
		t.Errorf("resident memory grew from %d to %d", rss, now)
	}
	for name, v := range s.counters().values {
		if strings.HasPrefix(name, "now.tcp") && v > 4 {
			t.Errorf("%s is %d after all connections have ended", name, v)
		}
	}
}

func churn(t *testing.T, l *lab, s *sandbox, out netip.AddrPort, lasts time.Duration) (n int) {
	var wg sync.WaitGroup
	var in int
	wg.Go(func() {
		for deadline := time.Now().Add(lasts); time.Now().Before(deadline); in++ {
			c, err := l.There.Dial("tcp", at(topo.Here4, 8080).String(), 5*time.Second)
			if err != nil {
				t.Errorf("connection %d into the sandbox: %v", in, err)
				return
			}
			_ = c.(*net.TCPConn).SetLinger(0) // otherwise connections in TIME_WAIT use up the ports
			if got := (guest.Exchange{Text: "hello"}).On(c); !echoed(got) {
				t.Errorf("connection %d into the sandbox: %+v", in, got)
			}
			c.Close()
		}
	})
	for deadline := time.Now().Add(lasts); time.Now().Before(deadline); {
		got := do(s, guest.Churn{To: guest.To(out), Count: 500})
		if got != 500 {
			t.Errorf("%d of 500 connections out of the sandbox worked", got)
			break
		}
		n += got
	}
	wg.Wait()
	return n + in
}

// sockets counts the sockets in use in "here", where only the supervisor has any.
func (l *lab) sockets() int {
	l.Helper()
	text, err := l.Here.Read("/proc/thread-self/net/sockstat")
	if err != nil {
		l.Fatal(err)
	}
	n := 0
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) > 2 && (f[0] == "TCP:" || f[0] == "UDP:") {
			v, err := strconv.Atoi(f[2])
			if err != nil {
				l.Fatal(err)
			}
			n += v
		}
	}
	return n
}

func TestScorecard34HalfClose(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		const n = 3<<20 + 17
		s := l.start("-p", "8080:80")
		s.listenTCP(guest.SumAfterEnd, 80)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.SumAfterEnd)
			s.wantHalfClose(srv, n)
			if got := (guest.HalfClose{Bytes: n}).On(l.connectTo(l.There, at(f.here, 8080))); got != guest.OK {
				t.Errorf("into the sandbox at %v: %v", f.here, got)
			}
		}
	})
}

func TestScorecard35Reset(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		const most = 100 * time.Millisecond
		s := l.start("-p", "8080:80")
		s.listenTCP(guest.ResetAfterByte, 80)
		check := func(where string, got guest.Timed) {
			t.Helper()
			if got.Outcome != guest.Reset || got.Took.Truncate(time.Millisecond) > most {
				t.Errorf("%s: %v after %v; want a reset within %v", where, got.Outcome, got.Took, most)
			}
		}
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.ResetAfterByte)
		check("the server on the host's side resets", do(s, guest.AwaitReset{To: guest.To(srv)}))
		check("the server inside resets", guest.AwaitReset{}.On(l.connectTo(l.There, at(topo.Here4, 8080))))
	})
}

// TestIperf3 runs iperf3 in every mode that its users try first.
func TestIperf3(t *testing.T) {
	path, err := exec.LookPath("iperf3")
	if err != nil {
		skip.Missing(t, "%v", err)
	}
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv := l.There.Command(path, "-s")
		if err := srv.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, func() string {
			c, err := l.Here.Dial("tcp", at(topo.There4, 5201).String(), time.Second)
			if err != nil {
				return err.Error()
			}
			c.Close()
			return ""
		})
		for _, more := range [][]string{nil, {"-R"}, {"-u", "-b", "20M"}} {
			argv := append([]string{path, "-c", topo.There4.String(), "-t", "1"}, more...)
			if r := l.once(nil, argv...); r.code != 0 {
				t.Errorf("iperf3 %v: exit %d\n%s%s", more, r.code, r.stdout, r.stderr)
			}
		}
	})
}
