package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// These tests cover how TCP connections begin and end, which is the same on both datapaths.

// TestDatapathIsNamed: inspect names the datapath, and the counters show what it carried.
func TestDatapathIsNamed(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.start()
		if got := l.manage("inspect", s.name); !strings.Contains(got, fmt.Sprintf(`"datapath": %q`, l.datapath)) {
			t.Errorf("inspect does not name %s:\n%s", l.datapath, got)
		}
		const n = 5
		want(s, guest.Held{Count: n}, guest.Hold{To: guest.To(srv), Count: n})
		s.wantHeldAnswer(n)
		c := s.counters()
		want := uint64(0)
		if l.datapath == "splice" {
			want = n
		}
		if c.of(tcpConnections) != n || c.of(tcpSpliced) != want || c.of(tcpOut) != n {
			t.Errorf("with %d connections: %v", n, c.values)
		}
		if c.of(tcpBytesOut) != n || c.of(tcpBytesIn) < n {
			t.Errorf("after an echo on each of %d: %d bytes out, %d in", n, c.of(tcpBytesOut), c.of(tcpBytesIn))
		}
	})
}

// TestOwnAddresses: a connection of the sandbox with itself does not leave it, and no server of the host's loopback answers on the
// gateway's address.
func TestOwnAddresses(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		_, reached := l.serve(l.Here, at(loopback4, 80), guest.Echo)
		s := l.start()
		s.listenTCP(guest.Echo, 80)
		own := []netip.Addr{guest4, loopback4}
		gateways := []netip.Addr{gateway4}
		if l.IPv6 {
			own = append(own, guest6, loopback6)
			gateways = append(gateways, gateway6)
		}
		for _, a := range own {
			s.wantEchoFrom(a, at(a, 80))
			s.wantConnect(guest.Refused, at(a, 81))
		}
		for _, a := range gateways {
			s.wantConnect(guest.Refused, at(a, 80))
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		if got := s.counters(); got.of(tcpOut) != 0 {
			t.Errorf("%d connections left", got.of(tcpOut))
		}
	})
}

// TestCloseTogether: both ends close their half at the same time, and lose nothing.
func TestCloseTogether(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		const n = 100
		s := l.start("-p", "8080:80")
		s.listenTCP(guest.ClosingTogether, 80)
		for _, f := range l.families() {
			srv, _ := l.serveFunc(l.There, at(f.there, 0), func(c *net.TCPConn) {
				if got := (guest.CloseTogether{}).On(c); got != guest.OK {
					t.Errorf("the server's end: %v", got)
				}
			})
			want(s, guest.OK, guest.CloseTogether{To: guest.To(srv), Count: n})
			for range n {
				if got := (guest.CloseTogether{}).On(l.connectTo(l.There, at(f.here, 8080))); got != guest.OK {
					t.Fatalf("into the sandbox at %v: %v", f.here, got)
				}
			}
		}
	})
}

// afterReset is what a Reporting server sees of guest.Abort.
var afterReset = guest.End{Bytes: 1, Outcome: guest.Reset}

// TestClientResets: the server gets all that the client sent before, and then the client's reset.
func TestClientResets(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80")
		s.listenTCP(guest.Reporting, 80)
		for _, f := range l.families() {
			ends := make(chan guest.End, 1)
			srv, _ := l.serveFunc(l.There, at(f.there, 0), func(c *net.TCPConn) { ends <- guest.ReportEnd(c) })
			want(s, guest.OK, guest.Abort{To: guest.To(srv)})
			if got := <-ends; got != afterReset {
				t.Errorf("the server at %v got %+v", srv, got)
			}
			if got := (guest.Abort{}).On(l.connectTo(l.There, at(f.here, 8080))); got != guest.OK {
				t.Errorf("into the sandbox at %v: %v", f.here, got)
			}
			want(s, afterReset, guest.AwaitReport{})
		}
	})
}

// TestUrgentData sends urgent data both ways at once.
func TestUrgentData(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80")
		s.listenTCP(guest.Urgent, 80)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Urgent)
			want(s, guest.WantUrgent(guest.MarkedUrgent), guest.ExchangeUrgent{To: guest.To(srv)})
			if got := (guest.ExchangeUrgent{}).On(l.connectTo(l.There, at(f.here, 8080))); got != guest.WantUrgent(guest.MarkedUrgent) {
				t.Errorf("into the sandbox at %v: %+v; want %+v", f.here, got, guest.WantUrgent(guest.MarkedUrgent))
			}
		}
	})
}

// TestSocketOptions: a mark, a device, data in the SYN and MPTCP, of clients and of servers.
func TestSocketOptions(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		s := l.start(asRoot, "-p", "8080:80", "-p", "8081:81", "-p", "8082:82")
		do(s, guest.ServeTCP{Server: guest.Echo, Port: 80, Socket: guest.Socket{Device: "eth0"}})
		do(s, guest.ServeTCP{Server: guest.Echo, Port: 81, Socket: guest.Socket{Mark: 77}})
		do(s, guest.ServeTCP{Server: guest.Echo, Port: 82, Socket: guest.Socket{Multipath: true}})
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			for _, options := range []guest.Socket{
				{Mark: 77}, {Mark: 0xffffffff}, {Device: "eth0"}, {Device: "eth0", Mark: 5}, {FastOpen: true}, {Multipath: true},
				{FastOpen: true, Mark: 9},
			} {
				s.wantEchoWith(options, srv)
			}
			for _, port := range []uint16{8080, 8081, 8082} {
				l.wantClientSeen(l.There, at(f.here, port))
			}
		}
	})
}

// TestSamePortAgain: a client takes the same port for one connection after the other, and for several destinations.
func TestSamePortAgain(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		s := l.start()
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		other, _ := l.serve(l.There, at(topo.There4b, srv.Port()), guest.Echo)
		for range 20 {
			for _, a := range []netip.AddrPort{srv, other} {
				s.wantEchoWith(guest.Socket{From: at(guest4, 7777)}, a)
			}
		}
	})
}

// TestSamePortAfterReset: a client resets a connection and connects from the same port at once.
func TestSamePortAfterReset(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		const n = 200
		s := l.start()
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			for port, exchange := range map[uint16]bool{7790: false, 7791: true} {
				want(s, guest.Held{Count: n}, guest.ReconnectAfterReset{To: srv, From: at(l.guestOf(f.there), port), Count: n, Exchange: exchange})
			}
		}
	})
}

// TestWithoutIPv6: IPv4 works as usual where IPv6 is off inside.
func TestWithoutIPv6(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.start("--ipv6=false", "-p", "8080:80")
		s.listenTCP(guest.Echo, 80)
		s.wantEcho(srv, "out")
		l.wantClientSeen(l.There, at(topo.Here4, 8080))
		if l.IPv6 {
			if got := do(s, guest.Connect{To: guest.To(at(topo.There6, 9))}).Outcome; got != guest.NetUnreachable && got != guest.NoAddress {
				t.Errorf("IPv6: %v", got)
			}
			l.wantAnswer(l.There, at(topo.Here6, 8080), "an IPv6 client of the published port")
		}
	})
}
