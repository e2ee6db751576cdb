package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// What a program can do with TCP, the same on both data paths: how connections begin and end.

// TestRoadIsNamed: inspect names the data path, and the counters say what went over it.
func TestRoadIsNamed(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		s := l.start()
		if got := l.manage("inspect", s.name); !strings.Contains(got, fmt.Sprintf(`"datapath": %q`, l.datapath)) {
			t.Errorf("inspect does not name %s:\n%s", l.datapath, got)
		}
		const n = 5
		s.want(fmt.Sprint(n), "hold", srv, n)
		s.want(fmt.Sprint(n), "hold-echo")
		c := s.counters()
		want := uint64(0)
		if l.datapath == "splice" {
			want = n
		}
		if c["now.tcp.connections"] != n || c["now.tcp.spliced"] != want || c["tcp.out"] != n {
			t.Errorf("with %d connections: %v", n, c)
		}
		if c["tcp.bytes-out"] != n || c["tcp.bytes-in"] < n {
			t.Errorf("after an echo on each of %d: %d bytes out, %d in", n, c["tcp.bytes-out"], c["tcp.bytes-in"])
		}
	})
}

// TestOwnAddresses: a connection of the sandbox with itself does not leave it, and the gateway is nobody's server.
func TestOwnAddresses(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		_, reached := l.serve(l.Here, "0.0.0.0:80", echo)
		s := l.start()
		s.do("serve-tcp", ":80")
		own := []string{guest4, "127.0.0.1"}
		if l.IPv6 {
			own = append(own, "fd52:6e65:7400::100", "::1")
		}
		for _, a := range own {
			if got := s.do("exchange", net.JoinHostPort(a, "80"), "hello"); got != fmt.Sprintf("%s hello", strings.TrimSuffix(got, " hello")) || !strings.Contains(got, a) {
				t.Errorf("exchange with %s: %q", a, got)
			}
			s.wantFirst("ECONNREFUSED", "connect", net.JoinHostPort(a, "81"))
		}
		s.wantFirst("ECONNREFUSED", "connect", net.JoinHostPort(gateway4, "80"))
		if l.IPv6 {
			s.wantFirst("ECONNREFUSED", "connect", "[fd52:6e65:7400::2]:80")
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		if got := s.counters(); got["tcp.out"] != 0 {
			t.Errorf("%d connections left", got["tcp.out"])
		}
	})
}

// TestCloseTogether: both ends close their half at the same time, and lose nothing.
func TestCloseTogether(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		const n = 100
		s := l.start("-p", "8080:80")
		s.do("serve-close", ":80")
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), func(c *net.TCPConn) {
				if got, err := guest.CloseTogether(c); err != nil || got != "same" {
					t.Errorf("the server got %q, %v", got, err)
				}
			})
			s.want("same", "close", srv, n)
			for range n {
				if got, err := guest.CloseTogether(l.connectTo(l.There, at(f.here, 8080))); err != nil || got != "same" {
					t.Fatalf("into the sandbox at %v: %q, %v", f.here, got, err)
				}
			}
		}
	})
}

// TestClientResets: a reset by the client is one for the server, after all that was sent before.
func TestClientResets(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80")
		s.do("serve-tell", ":80")
		for _, f := range l.families() {
			ends := make(chan string, 1)
			srv, _ := l.serve(l.There, at(f.there, 0), func(c *net.TCPConn) { ends <- guest.Tell(c) })
			s.want("ok", "abort", srv)
			if got := <-ends; got != "1 ECONNRESET" {
				t.Errorf("the server at %v got %q", srv, got)
			}
			if got, err := guest.Abort(l.connectTo(l.There, at(f.here, 8080))); err != nil || got != "ok" {
				t.Errorf("into the sandbox at %v: %q, %v", f.here, got, err)
			}
			s.want("1 ECONNRESET", "tell")
		}
	})
}

// TestUrgentData: it arrives as urgent by the kernel's road, both ways at once; the userspace stack knows none, and
// delivers it in line.
func TestUrgentData(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		want := "abcdef abcdef ! at 3 ! at 3"
		if l.datapath == "stack" {
			want = "abc!def abc!def none none"
		}
		s := l.start("-p", "8080:80")
		s.do("serve-urgent", ":80")
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.UrgentServer)
			s.want(want, "urgent", srv)
			if got, err := guest.UrgentClient(l.connectTo(l.There, at(f.here, 8080))); err != nil || got != want {
				t.Errorf("into the sandbox at %v: %q, %v; want %q", f.here, got, err, want)
			}
		}
	})
}

// TestSocketOptions: a mark, a device, data in the SYN and MPTCP, of clients and of servers.
func TestSocketOptions(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80", "-p", "8081:81", "-p", "8082:82")
		s.do("serve-as", "device=eth0", ":80")
		s.do("serve-as", "mark=77", ":81")
		s.do("serve-as", "mptcp", ":82")
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			for _, options := range []string{"mark=77", "mark=0xffffffff", "device=eth0", "device=eth0,mark=5", "fastopen", "mptcp", "fastopen,mark=9"} {
				if got := s.do("exchange-as", options, srv, "hello"); !strings.HasSuffix(got, " hello") {
					t.Errorf("%s to %v: %q", options, srv, got)
				}
			}
			for _, port := range []int{8080, 8081, 8082} {
				c := l.connectTo(l.There, at(f.here, port))
				got, err := guest.Exchange(c, "hello")
				if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
					t.Errorf("port %d of %v: %q, %v; want %q", port, f.here, got, err, want)
				}
			}
		}
	})
}

// TestSamePortAgain: a client takes the same port for one connection after the other, and for several destinations.
func TestSamePortAgain(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		s := l.start()
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		other, _ := l.serve(l.There, at(topo.There4b, srv.Port()), echo)
		for range 20 {
			for _, a := range []netip.AddrPort{srv, other} {
				if got := s.do("exchange-as", "from="+guest4+":7777", a, "hello"); !strings.HasSuffix(got, " hello") {
					t.Fatalf("to %v: %q", a, got)
				}
			}
		}
	})
}

// TestWithoutIPv6: there is none inside, and IPv4 is not the worse for it.
func TestWithoutIPv6(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		s := l.start("--ipv6=false", "-p", "8080:80")
		s.do("serve-tcp", ":80")
		if got := s.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("out: %q", got)
		}
		c := l.connectTo(l.There, at(topo.Here4, 8080))
		if got, err := guest.Exchange(c, "hello"); err != nil || got != c.LocalAddr().String()+" hello" {
			t.Errorf("in: %q, %v", got, err)
		}
		if l.IPv6 {
			if got := s.do("connect", at(topo.There6, 9)); !strings.HasPrefix(got, "ENETUNREACH") && !strings.HasPrefix(got, "EADDRNOTAVAIL") {
				t.Errorf("IPv6: %q", got)
			}
			if got, err := guest.Exchange(l.connectTo(l.There, at(topo.Here6, 8080)), "hi"); err != nil || !strings.HasSuffix(got, " hi") {
				t.Errorf("an IPv6 client of the published port: %q, %v", got, err)
			}
		}
	})
}

// TestManyClientsAtOnce: more than there are sockets in stock.
func TestManyClientsAtOnce(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		const n = 300
		s := l.start("-p", "8080:80")
		s.do("serve-tcp", ":80")
		results := make(chan string, n)
		for range n {
			go func() {
				c, err := l.There.Dial("tcp", at(topo.Here4, 8080), 5*time.Second)
				if err != nil {
					results <- err.Error()
					return
				}
				defer c.Close()
				got, err := guest.Exchange(c, "hello")
				if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
					results <- fmt.Sprintf("%q, %v; want %q", got, err, want)
					return
				}
				results <- ""
			}()
		}
		for range n {
			if problem := <-results; problem != "" {
				t.Error(problem)
			}
		}
	})
}
