package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// connectTo dials from a namespace.
func (l *lab) connectTo(ns *topo.NS, addr string) net.Conn {
	l.Helper()
	c, err := ns.Dial("tcp", addr, 5*time.Second)
	if err != nil {
		l.Fatalf("dial %s: %v", addr, err)
	}
	l.Cleanup(func() { c.Close() })
	return c
}

func TestTCPOut(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start()
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), func(c *net.TCPConn) { guest.Echo(c) })
			got := s.do("exchange", srv, "hello")
			peer, text, _ := strings.Cut(got, " ")
			if host, _, _ := net.SplitHostPort(peer); host != f.here.String() || text != "hello" {
				t.Errorf("exchange with %v: %q; want the host's address %v and the echo", srv, got, f.here)
			}
		}
	})
}

// wantUDPError sends datagrams until one comes to the error. The router that "there" is answers at most about one a
// second (net.ipv4.route.error_cost, which only the host can change), so the first may go unanswered.
func (s *sandbox) wantUDPError(want, addr string) {
	s.Helper()
	eventually(s.T, 5*time.Second, func() string {
		if got := s.do("udp", addr, "x", "500ms"); got != want {
			return fmt.Sprintf("inside, udp to %s: got %q, want %q", addr, got, want)
		}
		return ""
	})
}

// TestFailuresComeThrough: refused stays refused, unreachable unreachable, prohibited prohibited, silent silent; on TCP
// and UDP, both families.
func TestFailuresComeThrough(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		s := l.start()
		s.wantFirst("ECONNREFUSED", "connect", at(topo.There4, 9))
		s.wantFirst("EHOSTUNREACH", "connect", at(topo.Unreachable4, 9))
		s.wantFirst("EHOSTUNREACH", "connect", at(topo.Prohibited4, 9))
		s.wantFirst("TIMEOUT", "connect", at(topo.Blackhole4, 9), "1500ms")
		s.want("ECONNREFUSED", "udp", at(topo.There4, 9), "x")
		s.wantUDPError("EHOSTUNREACH", at(topo.Unreachable4, 9))
		s.wantUDPError("EHOSTUNREACH", at(topo.Prohibited4, 9))
		s.want("TIMEOUT", "udp", at(topo.Blackhole4, 9), "x", "300ms")
		if !l.IPv6 {
			return
		}
		s.wantFirst("ECONNREFUSED", "connect", at(topo.There6, 9))
		s.wantFirst("ENETUNREACH", "connect", at(topo.Unreachable6, 9))
		s.wantFirst("EACCES", "connect", at(topo.Prohibited6, 9))
		s.wantFirst("TIMEOUT", "connect", at(topo.Blackhole6, 9), "1500ms")
		s.want("ECONNREFUSED", "udp", at(topo.There6, 9), "x")
		s.wantUDPError("EACCES", at(topo.Prohibited6, 9))
	})
}

func TestUDPOut(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start()
		for _, f := range l.families() {
			srv, _ := l.serveUDP(l.There, at(f.there, 0))
			got := s.do("udp", srv, "hello")
			peer, text, _ := strings.Cut(got, " ")
			if host, _, _ := net.SplitHostPort(peer); host != f.here.String() || text != "hello" {
				t.Errorf("udp with %v: %q; want the host's address %v and the echo", srv, got, f.here)
			}
		}
		// A datagram that fits the guest's link and not the host's crosses in fragments, the first one too.
		large := strings.Repeat("y", 20000)
		for _, f := range l.families() {
			srv, _ := l.serveUDP(l.There, at(f.there, 0))
			if got := s.do("udp", srv, large); !strings.HasSuffix(got, " "+large) {
				t.Errorf("20000 bytes to %v came back as %d: %.40q", srv, len(got), got)
			}
		}
	})
}

// TestUDPTrains: datagrams that follow each other closely travel together, and arrive as they were sent, both ways.
func TestUDPTrains(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8081:81/udp")
		s.do("serve-udp", ":81")
		for _, f := range l.families() {
			srv, _ := l.serveUDP(l.There, at(f.there, 0))
			s.want("ok", "udp-trains", srv)
			c, err := l.There.Dial("udp", at(f.here, 8081), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if got := guest.TrainsUDP(c); got != "ok" {
				t.Errorf("to the published port of %v: %s", f.here, got)
			}
			c.Close()
		}
	})
}

func TestPing(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		s := l.start()
		s.want("reply 56", "ping", gateway4)
		for _, f := range l.families() {
			s.want("reply 56", "ping", f.there)
		}
		s.want("TIMEOUT", "ping", topo.Blackhole4, "300ms")
		eventually(t, 5*time.Second, func() string { // see wantUDPError
			if got := s.do("ping", topo.Unreachable4, "500ms"); !strings.HasPrefix(got, "destination unreachable") {
				return fmt.Sprintf("ping of an unreachable host: %q", got)
			}
			return ""
		})
	})
}

// TestPingWithoutPermission: an echo that the host may not send is not answered by anybody.
func TestPingWithoutPermission(t *testing.T) {
	l := newLabWith(t, topo.Options{NoPing: true})
	s := l.start()
	if got := s.do("ping", topo.There4); strings.HasPrefix(got, "reply") {
		t.Errorf("got %q for an echo request that cannot have been sent", got)
	}
}

// TestHostAddress: what listens on the host's own address answers.
func TestHostAddress(t *testing.T) {
	l := newLab(t)
	s := l.start()
	for _, f := range l.families() {
		srv, _ := l.serve(l.Here, at(f.here, 0), func(c *net.TCPConn) { guest.Echo(c) })
		if got := s.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("exchange with the host at %v: %q", srv, got)
		}
	}
}

// TestPublish: a server inside is reached by the host's address, from a neighbour and from further away, and by its
// loopback; it sees who asks.
func TestPublish(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80", "-p", "8081:81/udp")
		s.do("serve-tcp", ":80")
		s.do("serve-udp", ":81")
		for _, f := range l.families() {
			c := l.connectTo(l.There, at(f.here, 8080))
			got, err := guest.Exchange(c, "hello")
			if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
				t.Errorf("TCP to %v: %q, %v; want %q", f.here, got, err, want)
			}
			u, err := l.There.Dial("udp", at(f.here, 8081), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			got, err = guest.AskUDP(u, "hello", 2*time.Second)
			if want := u.LocalAddr().String() + " hello"; err != nil || got != want {
				t.Errorf("UDP to %v: %q, %v; want %q", f.here, got, err, want)
			}
			u.Close()
		}
		got, err := guest.Exchange(l.connectTo(l.Here, "127.0.0.1:8080"), "hello")
		if err != nil || !strings.HasPrefix(got, gateway4+":") {
			t.Errorf("from the host's loopback the server saw %q, %v; want the gateway %s", got, err, gateway4)
		}
	})
}

// TestPublishToOneFamily: clients of IPv6 reach a server that listens on IPv4 only.
func TestPublishToOneFamily(t *testing.T) {
	l := newLab(t)
	if !l.IPv6 {
		t.Skip("THIS KERNEL HAS NO IPv6")
	}
	s := l.start("-p", "8080:80")
	s.do("serve-tcp", "0.0.0.0:80", "tcp4")
	got, err := guest.Exchange(l.connectTo(l.There, at(topo.Here6, 8080)), "hello")
	if err != nil || !strings.HasSuffix(got, " hello") {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestClosedPortInside: a published port behind which nothing listens resets its clients.
func TestClosedPortInside(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		l.start("-p", "8080:80")
		c, err := l.There.Dial("tcp", at(topo.Here4, 8080), 2*time.Second)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if got := guest.Errno(err); got != "ECONNRESET" && got != "ECONNREFUSED" {
			t.Errorf("got %s, want a reset", got)
		}
	})
}

// TestHairpin: the sandbox reaches its own published port by the host's address.
func TestHairpin(t *testing.T) {
	l := newLab(t)
	s := l.start("-p", "8080:80")
	s.do("serve-tcp", ":80")
	if got := s.do("exchange", at(topo.Here4, 8080), "hello"); !strings.HasSuffix(got, " hello") {
		t.Errorf("got %q", got)
	}
}

// TestHostLoopbackNamed: the named port answers on the gateway's address and by name, another one does not.
func TestHostLoopbackNamed(t *testing.T) {
	l := newLab(t)
	open, _ := l.serve(l.Here, "127.0.0.1:0", func(c *net.TCPConn) { guest.Echo(c) })
	closed, reached := l.serve(l.Here, "127.0.0.1:0", func(c *net.TCPConn) { guest.Echo(c) })
	s := l.start("--host-loopback", fmt.Sprint(open.Port()))
	for _, host := range []string{gateway4, "host.docker.internal", "host.containers.internal"} {
		if got := s.do("exchange", net.JoinHostPort(host, fmt.Sprint(open.Port())), "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("exchange by %s: %q", host, got)
		}
		s.wantFirst("ECONNREFUSED", "connect", net.JoinHostPort(host, fmt.Sprint(closed.Port())))
	}
	if reached.count() != 0 {
		t.Error("the port that was not named was reached")
	}
}

// TestPublishAll: what begins to listen inside is published, what ends is not any more.
func TestPublishAll(t *testing.T) {
	l := newLab(t)
	s := l.start("-P")
	time.Sleep(time.Second) // several looks
	if strings.Contains(s.stderr.String(), "published") {
		t.Errorf("nothing listens inside, and yet:\n%s", s.stderr)
	}
	addr := s.do("serve-tcp", ":18080")
	_, port, _ := net.SplitHostPort(addr)
	var c net.Conn
	eventually(t, 5*time.Second, func() string {
		var err error
		if c, err = l.There.Dial("tcp", at(topo.Here4, port), time.Second); err != nil {
			return err.Error()
		}
		return ""
	})
	defer c.Close()
	got, err := guest.Exchange(c, "hello")
	if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if !strings.Contains(s.stderr.String(), port) {
		t.Errorf("the port was not printed; stderr:\n%s", s.stderr)
	}
}
