package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// These tests change the namespace from inside, where the command is root, and try to bypass the policy.

// wantBothWays tries connections out and in; the server inside is an Echo server on port 80, published as 8080.
func (s *sandbox) wantBothWays(when string) {
	s.Helper()
	for _, f := range s.families() {
		srv, _ := s.serve(s.There, at(f.there, 0), guest.Echo)
		s.wantEcho(srv, when)
		s.wantClientSeen(s.There, at(f.here, 8080), when)
	}
	s.wantConnect(guest.Refused, at(topo.There4, 9))
}

// startServer starts a sandbox with an Echo server on port 80, published as 8080.
func (l *lab) startServer() *sandbox {
	l.Helper()
	s := l.start(asRoot, "-p", "8080:80")
	s.listenTCP(guest.Echo, 80)
	return s
}

// TestFlushRuleset: a firewall script begins with "flush ruleset", and loads its own rules afterwards.
func TestFlushRuleset(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		s := l.startServer()
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		want(s, guest.Held{Count: 20}, guest.Hold{To: guest.To(srv), Count: 20})
		for range 2 {
			do(s, guest.FlushRules{})
			s.wantBothWays("after flush ruleset")
		}
		do(s, guest.LoadFirewall{Loopback: true, Ports: []uint16{80}})
		s.wantBothWays("with a firewall")
		s.wantHeldAnswer(20)
	})
}

// TestFirewallInside: a firewall that lets in what belongs to connections, and the port by the uplink. It may have no rule
// for lo, by which the splice path's connections come.
func TestFirewallInside(t *testing.T) {
	for name, rules := range map[string]guest.LoadFirewall{
		"lo+80": {Loopback: true, Ports: []uint16{80}},
		"80":    {Ports: []uint16{80}},
	} {
		t.Run(name, func(t *testing.T) {
			onEveryDatapath(t, func(t *testing.T, l *lab) {
				s := l.startServer()
				do(s, rules)
				s.wantBothWays("rules: " + name)
			})
		})
	}
}

func TestMarksAndPolicyRoutingInside(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		s := l.startServer()
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		do(s, guest.AddPolicyRoute{Priority: 10})
		s.wantBothWays("with a routing table of the command's own")
		do(s, guest.AddPolicyRoute{Priority: 5, Mark: 55, Unreachable: true})
		s.wantBothWays("with an unreachable route for a mark")
		want(s, guest.Echoed{Outcome: guest.HostUnreachable}, guest.Exchange{To: guest.To(srv), Text: "hello", Socket: guest.Socket{Mark: 55}})
		s.wantEchoWith(guest.Socket{Mark: 56}, srv, "with another mark")
		do(s, guest.MarkOutput{Mark: 56})
		s.wantBothWays("with a mark on all that is sent")
	})
}

// Marks of the range that the TPROXY redirect uses: a program that uses them must get no further access.
const (
	markRedirect = 0x726e0001 // of packets that are routed to lo, and there to the listener
	markUnused   = 0x726e0002
	markRemote   = 0x726e0003 // of sockets inside with the address of a remote peer
	markAccepted = 0x726e0011 // of sockets inside with the address of a remote server
)

// TestPolicyCannotBeBypassed: a program that opens connections directly to the listeners of the splice path reaches no server.
func TestPolicyCannotBeBypassed(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		if l.datapath == "stack" {
			return // the stack path uses no marks
		}
		srv, reached := l.serve(l.Here, at(any4, 0), guest.Echo)
		onLoopback, reachedLoopback := l.serve(l.Here, at(loopback4, 0), guest.Echo)
		s := l.start(asRoot)
		allowed := 0
		targets := []netip.Addr{loopback4, netip.MustParseAddr("169.254.169.254"), gateway4, netip.MustParseAddr("192.0.0.8")}
		if l.IPv6 {
			targets = append(targets, loopback6, netip.MustParseAddr("100::1"), gateway6)
		}
		for _, dst := range targets {
			for _, mark := range []uint32{markRedirect, markUnused, markRemote, markAccepted} {
				for _, port := range []uint16{srv.Port(), onLoopback.Port(), 1} {
					// With a mark that is not used the connection goes by the link, as any other does.
					open := mark == markUnused && port == srv.Port() && (dst == gateway4 || dst == gateway6)
					options := guest.Socket{Mark: mark, Timeout: 200 * time.Millisecond}
					if open {
						allowed++
						options.Timeout = 0 // the usual one
					}
					if got := do(s, guest.Exchange{To: guest.To(at(dst, port)), Text: "hello", Socket: options}); echoed(got) != open {
						t.Errorf("mark %#x to %v: %+v", mark, at(dst, port), got)
					}
					want(s, 50, guest.SendLoopbackSYNs{Mark: mark, To: at(dst, port), Count: 50})
				}
			}
		}
		if reached.count() != allowed || reachedLoopback.count() != 0 {
			t.Fatalf("the host was reached %d times, want %d, and its loopback %d times", reached.count(), allowed, reachedLoopback.count())
		}
		// An address that is open, but the connection does not come by the link.
		open := at(topo.Here4, srv.Port())
		got := do(s, guest.Exchange{To: guest.To(open), Text: "hello", Socket: guest.Socket{Mark: markRedirect}})
		if echoed(got) || reached.count() != allowed {
			t.Errorf("with the mark, to an open address: %+v", got)
		}
		s.wantEcho(open, "afterwards, without a mark")
		eventually(t, time.Second, func() string {
			if n := s.counter(tcpConnections); n != 0 {
				return fmt.Sprintf("%d connections are left", n)
			}
			return ""
		})
	})
}
