package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// What a command does to its own namespace, as root of it, and what it tries with it.

// wantBothWays tries connections out and in, the server inside being an Echo on port 80 published as 8080.
func (s *sandbox) wantBothWays(when string) {
	s.Helper()
	for _, f := range s.families() {
		srv, _ := s.serve(s.There, at(f.there, 0), echo)
		if got := s.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
			s.Errorf("%s: exchange with %v: %q", when, srv, got)
		}
		c := s.connectTo(s.There, at(f.here, 8080))
		got, err := guest.Exchange(c, "hello")
		if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
			s.Errorf("%s: published port of %v: %q, %v; want %q", when, f.here, got, err, want)
		}
		c.Close()
	}
	s.wantFirst("ECONNREFUSED", "connect", at(topo.There4, 9))
}

func (l *lab) startServer() *sandbox {
	l.Helper()
	s := l.start("-p", "8080:80")
	s.do("serve-tcp", ":80")
	return s
}

// TestFlushRuleset: a firewall script begins with it, and loads its own rules afterwards.
func TestFlushRuleset(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		s := l.startServer()
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		s.want("20", "hold", srv, 20)
		for range 2 {
			s.want("flushed", "nft-flush")
			s.wantBothWays("after flush ruleset")
		}
		s.want("loaded", "nft-input", "lo", "80")
		s.wantBothWays("with a firewall")
		s.want("20", "hold-echo")
	})
}

// TestFirewallInside: one that lets in what belongs to connections, and the port by the uplink; it has never heard of what
// comes by lo.
func TestFirewallInside(t *testing.T) {
	for _, rules := range []string{"lo 80", "80"} {
		t.Run(strings.ReplaceAll(rules, " ", "+"), func(t *testing.T) {
			onEveryRoad(t, func(t *testing.T, l *lab) {
				s := l.startServer()
				s.want("loaded", "nft-input", rules)
				s.wantBothWays("rules: " + rules)
			})
		})
	}
}

func TestMarksAndPolicyRoutingInside(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		s := l.startServer()
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		s.want("added", "policy-route", 10, 0, "copy")
		s.wantBothWays("with a table of one's own")
		s.want("added", "policy-route", 5, 55, "unreachable")
		s.wantBothWays("with a mark that leads nowhere")
		s.want("EHOSTUNREACH", "exchange-as", "mark=55", srv)
		if got := s.do("exchange-as", "mark=56", srv, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("with another mark: %q", got)
		}
		s.want("loaded", "nft-mark", 56)
		s.wantBothWays("with a mark on all that is sent")
	})
}

// The numbers of userns/divert.go: whoever knows them must gain nothing.
const (
	markDivert = "0x726e0001"
	markKeep   = "0x726e0002"
	markSpeak  = "0x726e0003"
)

// TestNoWayAroundPolicy: connections that a program brings to our listeners by itself reach nobody.
func TestNoWayAroundPolicy(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		if l.datapath == "stack" {
			return // to which the marks mean nothing
		}
		srv, reached := l.serve(l.Here, "0.0.0.0:0", echo)
		metadata := "169.254.169.254"
		s := l.start()
		targets := []string{"127.0.0.1", metadata, gateway4, "192.0.0.8"}
		if l.IPv6 {
			targets = append(targets, "::1", "100::1", "fd52:6e65:7400::2")
		}
		for _, dst := range targets {
			for _, mark := range []string{markDivert, markKeep, markSpeak} {
				for _, port := range []uint16{srv.Port(), 1} {
					addr := joinPort(dst, port)
					if got := s.do("exchange-as", "timeout=200ms,mark="+mark, addr, "hello"); strings.HasSuffix(got, " hello") {
						t.Errorf("mark %s to %s: %q", mark, addr, got)
					}
					s.want("50", "raw-lo", mark, dst, port, 50)
				}
			}
		}
		if reached.count() != 0 {
			t.Fatalf("the host was reached %d times", reached.count())
		}
		// An address that is open, but was not asked for by the link.
		if got := s.do("exchange-as", "mark="+markDivert, joinPort(topo.Here4.String(), srv.Port())); strings.HasSuffix(got, " hello") || reached.count() != 0 {
			t.Errorf("with the mark, to an open address: %q", got)
		}
		if got := s.do("exchange", joinPort(topo.Here4.String(), srv.Port()), "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("afterwards, without tricks: %q", got)
		}
		eventually(t, time.Second, func() string {
			if n := s.counters()["now.tcp.connections"]; n != 0 {
				return fmt.Sprintf("%d connections are left", n)
			}
			return ""
		})
	})
}

func joinPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		return fmt.Sprintf("[%s]:%d", host, port)
	}
	return fmt.Sprintf("%s:%d", host, port)
}
