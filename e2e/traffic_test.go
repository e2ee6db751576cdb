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

func TestTCPOut(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start()
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			s.wantEchoFrom(f.here, srv)
		}
	})
}

// wantUDPErrorSoon sends datagrams until one gets the error. The router that "there" is answers at most about one a
// second (net.ipv4.route.error_cost, which only the host can change), so the first may go unanswered.
func (s *sandbox) wantUDPErrorSoon(outcome guest.Outcome, to netip.AddrPort) {
	s.Helper()
	eventually(s.T, 5*time.Second, func() string {
		if got := s.askUDP(to, "x", 500*time.Millisecond); got.Outcome != outcome {
			return fmt.Sprintf("inside, a datagram to %v: got %+v, want %v", to, got, outcome)
		}
		return ""
	})
}

// TestFailuresComeThrough: the command gets the error that the host got: refused, unreachable, prohibited or no answer,
// with TCP and UDP, for both families.
func TestFailuresComeThrough(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		s := l.start()
		s.wantConnect(guest.Refused, at(topo.There4, 9))
		s.wantConnect(guest.HostUnreachable, at(topo.Unreachable4, 9))
		s.wantConnect(guest.HostUnreachable, at(topo.Prohibited4, 9))
		s.wantNoAnswer(at(topo.Blackhole4, 9), 1500*time.Millisecond)
		s.wantUDPOutcome(guest.Refused, at(topo.There4, 9), 0)
		s.wantUDPErrorSoon(guest.HostUnreachable, at(topo.Unreachable4, 9))
		s.wantUDPErrorSoon(guest.HostUnreachable, at(topo.Prohibited4, 9))
		s.wantUDPOutcome(guest.TimedOut, at(topo.Blackhole4, 9), 300*time.Millisecond)
		if !l.IPv6 {
			return
		}
		s.wantConnect(guest.Refused, at(topo.There6, 9))
		s.wantConnect(guest.NetUnreachable, at(topo.Unreachable6, 9))
		s.wantConnect(guest.Denied, at(topo.Prohibited6, 9))
		s.wantNoAnswer(at(topo.Blackhole6, 9), 1500*time.Millisecond)
		s.wantUDPOutcome(guest.Refused, at(topo.There6, 9), 0)
		s.wantUDPErrorSoon(guest.Denied, at(topo.Prohibited6, 9))
	})
}

func TestUDPOut(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start()
		for _, f := range l.families() {
			srv, _ := l.serveUDP(l.There, at(f.there, 0))
			if got := s.askUDP(srv, "hello", 0); !echoed(got) || got.Client.Addr() != f.here {
				t.Errorf("a datagram to %v: %+v; want the echo, and the host's address %v", srv, got, f.here)
			}
		}
		// A datagram that fits the guest's link and not the host's crosses in fragments, the first one too.
		large := strings.Repeat("y", 20000)
		for _, f := range l.families() {
			srv, _ := l.serveUDP(l.There, at(f.there, 0))
			if got := s.askUDP(srv, large, 0); got.Text != large {
				t.Errorf("20000 bytes to %v came back as %d: %v, %.40q", srv, len(got.Text), got.Outcome, got.Text)
			}
		}
	})
}

// TestUDPBatches: datagrams that follow each other closely travel in one GSO batch, and arrive as they were sent, both ways.
func TestUDPBatches(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8081:81/udp")
		s.listenUDP(81)
		for _, f := range l.families() {
			srv, _ := l.serveUDP(l.There, at(f.there, 0))
			want(s, guest.OK, guest.AskUDPInBatches{To: guest.To(srv)})
			if got := (guest.AskUDPInBatches{}).On(l.dialUDP(l.There, at(f.here, 8081))); got != guest.OK {
				t.Errorf("to the published port of %v: %v", f.here, got)
			}
		}
	})
}

func TestPing(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		s := l.start(asRoot)
		s.wantPong(gateway4)
		for _, f := range l.families() {
			s.wantPong(f.there)
		}
		want(s, guest.Pong{Outcome: guest.TimedOut}, guest.Ping{To: topo.Blackhole4, Timeout: 300 * time.Millisecond})
		eventually(t, 5*time.Second, func() string { // see wantUDPErrorSoon
			if got := do(s, guest.Ping{To: topo.Unreachable4, Timeout: 500 * time.Millisecond}); got.Outcome != guest.Unreachable {
				return fmt.Sprintf("ping of an unreachable host: %+v", got)
			}
			return ""
		})
	})
}

// TestPingWithoutPermission: an echo request that the host may not send is not answered.
func TestPingWithoutPermission(t *testing.T) {
	l := newLabWith(t, topo.Options{NoPing: true})
	s := l.start()
	if got := do(s, guest.Ping{To: topo.There4}); got.Outcome == guest.OK {
		t.Errorf("got %+v for an echo request that cannot have been sent", got)
	}
}

// TestHostAddress: what listens on the host's own address answers.
func TestHostAddress(t *testing.T) {
	l := newLab(t)
	s := l.start()
	for _, f := range l.families() {
		srv, _ := l.serve(l.Here, at(f.here, 0), guest.Echo)
		s.wantEcho(srv)
	}
}

// TestHairpin: the sandbox reaches its own published port by the host's address.
func TestHairpin(t *testing.T) {
	l := newLab(t)
	s := l.start("-p", "8080:80")
	s.listenTCP(guest.Echo, 80)
	s.wantEcho(at(topo.Here4, 8080))
}

// TestHostLoopbackNamed: the port that is named answers on the gateway's address and by name, other ports do not.
func TestHostLoopbackNamed(t *testing.T) {
	l := newLab(t)
	open, _ := l.serve(l.Here, at(loopback4, 0), guest.Echo)
	closed, reached := l.serve(l.Here, at(loopback4, 0), guest.Echo)
	s := l.start("--host-loopback", fmt.Sprint(open.Port()))
	for _, host := range []string{gateway4.String(), "host.docker.internal", "host.containers.internal"} {
		if got := do(s, guest.Exchange{To: guest.Target{Host: host, Port: open.Port()}, Text: "hello"}); !echoed(got) {
			t.Errorf("exchange by %s: %+v", host, got)
		}
		s.wantConnectTo(guest.Refused, guest.Target{Host: host, Port: closed.Port()}, 0)
	}
	if reached.count() != 0 {
		t.Error("the port that was not named was reached")
	}
}

// TestPublishAll: with -P a port is published as soon as a server inside listens on it.
func TestPublishAll(t *testing.T) {
	l := newLab(t)
	s := l.start("-P")
	time.Sleep(time.Second) // several scans of the listening sockets
	if strings.Contains(s.stderr.String(), "published") {
		t.Errorf("nothing listens inside, and yet:\n%s", s.stderr)
	}
	port := s.listenTCP(guest.Echo, 18080).Port()
	var c net.Conn
	eventually(t, 5*time.Second, func() string {
		var err error
		if c, err = l.There.Dial("tcp", at(topo.Here4, port).String(), time.Second); err != nil {
			return err.Error()
		}
		return ""
	})
	l.wantClientSeenOn(c)
	if !strings.Contains(s.stderr.String(), fmt.Sprint(port)) {
		t.Errorf("the port was not printed; stderr:\n%s", s.stderr)
	}
}
