package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// These tests cover what a namespace forwards: containers on a bridge in it, masqueraded by the rules of their engine.

// hosts are a host's addresses on a bridge.
type hosts struct{ v4, v6 netip.Prefix }

// Addresses on the bridge.
var (
	bridge = hosts{netip.MustParsePrefix("10.89.0.1/24"), netip.MustParsePrefix("fd89::1/64")}
	box1   = hosts{netip.MustParsePrefix("10.89.0.2/24"), netip.MustParsePrefix("fd89::2/64")}
	box2   = hosts{netip.MustParsePrefix("10.89.0.3/24"), netip.MustParsePrefix("fd89::3/64")}

	otherBridge = netip.MustParsePrefix("10.90.0.1/24")
	otherBox    = netip.MustParsePrefix("10.90.0.2/24")
)

func (h hosts) prefixes() []netip.Prefix { return []netip.Prefix{h.v4, h.v6} }
func (h hosts) addrs() []netip.Addr      { return []netip.Addr{h.v4.Addr(), h.v6.Addr()} }

// of is the address of the same family as other.
func (h hosts) of(other netip.Addr) netip.Addr {
	if other.Is4() {
		return h.v4.Addr()
	}
	return h.v6.Addr()
}

// engine is an attached namespace with a bridge, and containers on it.
type engine struct {
	*namespace
	a      *attached
	args   []string
	socket string
}

// newEngine makes the bridge after the namespace has been connected, as engines do.
func newEngine(t *testing.T, l *lab) *engine {
	t.Helper()
	n := l.holder()
	e := &engine{namespace: n, socket: filepath.Join(l.runtime, "s")}
	e.args = []string{"--configure", "--name", "engine", "--api-socket", e.socket, strconv.Itoa(n.pid)}
	e.a = n.attach(e.args...)
	n.name = "engine"
	do(e, guest.AddBridge{Name: "br0", Prefixes: bridge.prefixes()})
	e.loadRules(guest.LoadMasquerade{})
	return e
}

// loadRules loads the engine's rules, for the networks of the bridge besides those named.
func (e *engine) loadRules(rules guest.LoadMasquerade) {
	e.Helper()
	for _, p := range bridge.prefixes() {
		rules.Prefixes = append(rules.Prefixes, p.Masked())
	}
	do(e, rules)
}

// container is an agent in a namespace of its own, on the bridge.
func (e *engine) container(name string, own hosts) *sandbox {
	e.Helper()
	s := e.agentBeside(name)
	do(e, guest.AddVeth{Bridge: "br0", PID: s.cmd.Process.Pid, Name: "eth0"})
	do(s, guest.Configure{Interface: "eth0", Prefixes: own.prefixes(), Gateways: bridge.addrs()})
	return s
}

// agentBeside is an agent in a namespace of its own, not connected yet.
func (e *engine) agentBeside(name string) *sandbox {
	e.Helper()
	argv := append([]string{"nsenter", "--target", strconv.Itoa(e.pid), "--user", "--net", "--preserve-credentials", "--", "unshare", "--net", "--"}, agentProgram()...)
	return e.agent(name, e.Here.Command(argv...))
}

// wantSpliced expects that the kernel splices that many connections, and that there are no others.
func (e *engine) wantSpliced(want uint64) {
	e.Helper()
	if e.datapath == "stack" {
		return
	}
	eventually(e.T, 2*time.Second, func() string {
		if c := e.counters(); c.of(tcpSpliced) != want || c.of(tcpConnections) != want {
			return fmt.Sprintf("%d connections, %d spliced; want %d", c.of(tcpConnections), c.of(tcpSpliced), want)
		}
		return ""
	})
}

func TestForwarded(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		two := e.container("two", box2)
		two.listenTCP(guest.Echo, 80)
		e.listenTCP(guest.Echo, 80)
		held := 0
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			box.wantEchoFrom(f.here, srv)
			half, _ := l.serve(l.There, at(f.there, 0), guest.SumAfterEnd)
			box.wantHalfClose(half, 3_000_000)
			reset, _ := l.serve(l.There, at(f.there, 0), guest.ResetAfterByte)
			if got := do(box, guest.AwaitReset{To: guest.To(reset)}); got.Outcome != guest.Reset {
				t.Errorf("the server at %v resets: got %v", reset, got.Outcome)
			}
			ends := make(chan guest.End, 1)
			reporting, _ := l.serveFunc(l.There, at(f.there, 0), func(c *net.TCPConn) { ends <- guest.ReportEnd(c) })
			want(box, guest.OK, guest.Abort{To: guest.To(reporting)})
			if got := <-ends; got != afterReset {
				t.Errorf("the server at %v got %+v", reporting, got)
			}
			box.wantConnect(guest.Refused, at(f.there, 9))
			udp, _ := l.serveUDP(l.There, at(f.there, 0))
			if got := box.askUDP(udp, "hello", 0); !echoed(got) {
				t.Errorf("a datagram to %v: %+v", udp, got)
			}
			const n = 50
			box.hold(srv, n)
			held += n
			e.wantSpliced(uint64(held))
			box.wantHeldAnswer(held)
		}
		box.wantConnect(guest.HostUnreachable, at(topo.Unreachable4, 9))
		box.wantNoAnswer(at(topo.Blackhole4, 9), 1500*time.Millisecond)
		for _, a := range append(box2.addrs(), bridge.addrs()...) {
			box.wantEcho(at(a, 80), "within the namespace")
		}
	})
}

// publish forwards a port of the host to a container, as rootlessport does through the helper.
func (e *engine) publish(port uint16, to netip.AddrPort) {
	e.Helper()
	parent := topo.Here4
	if to.Addr().Is6() {
		parent = topo.Here6
	}
	restPorts{e.lab, e.socket}.add(portSpec{Proto: "tcp", ParentIP: parent.String(), ParentPort: port, ChildIP: to.Addr().String(), ChildPort: to.Port()})
}

// TestForwardedOptions: options of sockets in containers. A TTL that hides the hop makes a connection look like one of the
// namespace's own, so its re-injected SYN is lost: the stack path takes the connection, a second later.
func TestForwardedOptions(t *testing.T) {
	onEveryDatapathAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			for _, options := range []guest.Socket{
				{FastOpen: true}, {Multipath: true}, {Device: "eth0"}, {TTL: 10}, {TTL: 128}, {TTL: 255}, {TTL: 65},
			} {
				box.wantEchoWith(options, srv)
			}
			urgent, _ := l.serve(l.There, at(f.there, 0), guest.Urgent)
			want(box, guest.WantUrgent(guest.MarkedUrgent), guest.ExchangeUrgent{To: guest.To(urgent)})
			closing, _ := l.serveFunc(l.There, at(f.there, 0), func(c *net.TCPConn) {
				if got := (guest.CloseTogether{}).On(c); got != guest.OK {
					t.Errorf("the server's end: %v", got)
				}
			})
			want(box, guest.OK, guest.CloseTogether{To: guest.To(closing), Count: 100})
		}
	})
}

// TestForwardedHairpin: a container connects to its own published port, and to its neighbour's, by the host's address.
func TestForwardedHairpin(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		e.loadRules(guest.LoadMasquerade{Open: true})
		box := e.container("one", box1)
		two := e.container("two", box2)
		two.listenTCP(guest.Echo, 80)
		e.publish(8080, at(box2.v4.Addr(), 80))
		for range 3 {
			for _, s := range []*sandbox{box, two} {
				s.wantEchoFrom(topo.Here4, at(topo.Here4, 8080), s.name)
			}
		}
	})
}

// TestForwardedAddressChanges: new connections work after the namespace's address has changed, and by another bridge.
func TestForwardedAddressChanges(t *testing.T) {
	onEveryDatapathAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		box.wantChurn(srv, 5)
		do(e, guest.RemoveAddress{Interface: "eth0", Prefix: netip.PrefixFrom(guest4, 24)})
		do(e, guest.Configure{Interface: "eth0", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.2.101/24")}, Gateways: []netip.Addr{gateway4}})
		box.wantChurn(srv, 5)
		addBridge := guest.AddBridge{Name: "br1", Prefixes: []netip.Prefix{otherBridge}}
		do(e, addBridge)
		e.loadRules(guest.LoadMasquerade{Prefixes: []netip.Prefix{otherBridge.Masked()}})
		other := e.agentBeside("three")
		bridgeEnd := do(e, guest.AddVeth{Bridge: "br1", PID: other.cmd.Process.Pid, Name: "eth0"})
		do(other, guest.Configure{Interface: "eth0", Prefixes: []netip.Prefix{otherBox}, Gateways: []netip.Addr{otherBridge.Addr()}})
		for _, s := range []*sandbox{box, other} {
			want(s, guest.Held{Count: 10}, guest.Hold{To: guest.To(srv), Count: 10})
		}
		e.wantSpliced(20)
		do(e, guest.RemoveLink{Interface: "br1"})
		do(e, addBridge)
		do(e, guest.JoinBridge{Bridge: "br1", Interface: bridgeEnd})
		other.wantHeldAnswer(10)
	})
}

// TestForwardedWrongLinkAddress: frames that a container sends to a link address which the bridge does not have are lost, and
// the connection survives that.
func TestForwardedWrongLinkAddress(t *testing.T) {
	onEveryDatapathAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		e.container("two", box2) // the bridge floods frames with an unknown address to it
		for _, f := range l.families() {
			gateway := bridge.of(f.here)
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			box.hold(srv, 1)
			do(box, guest.SetNeighbour{Interface: "eth0", Addr: gateway, MAC: "02:00:00:00:00:99"})
			if got := do(box, guest.EchoHeld{Timeout: 700 * time.Millisecond}); got.Count != 0 || got.Outcome == guest.OK {
				t.Errorf("to the wrong link address: %+v", got)
			}
			do(box, guest.ForgetNeighbour{Interface: "eth0", Addr: gateway})
			box.wantHeldAnswer(1)
			do(box, guest.DropHeld{})
		}
	})
}

// TestForwardedPublished: a container behind a published port sees the client's own address.
func TestForwardedPublished(t *testing.T) {
	onEveryDatapathAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		e.loadRules(guest.LoadMasquerade{Open: true}) // the stack path's connections to a container are forwarded, as any client's
		box := e.container("one", box1)
		box.listenTCP(guest.Echo, 80)
		box.listenTCP(guest.SumAfterEnd, 81)
		for _, f := range l.families() {
			to := box1.of(f.here)
			e.publish(8080, netip.AddrPortFrom(to, 80))
			e.publish(8081, netip.AddrPortFrom(to, 81))
			e.publish(8089, netip.AddrPortFrom(to, 9))
			l.wantClientSeen(l.There, at(f.here, 8080)) // perhaps by the stack path, until the namespace is prepared
			eventually(t, 2*time.Second, func() string {
				c := l.connectTo(l.There, at(f.here, 8080))
				defer c.Close()
				if _, err := c.Read(make([]byte, 1)); err != nil { // of the greeting
					return err.Error()
				}
				if n := e.counter(tcpSpliced); l.datapath == "splice" && n == 0 {
					return "by the stack path"
				}
				return ""
			})
			l.wantClientSeen(l.There, at(f.here, 8080))
			if got := (guest.HalfClose{Bytes: 3_000_000}).On(l.connectTo(l.There, at(f.here, 8081))); got != guest.OK {
				t.Errorf("half-closed: %v", got)
			}
			if got := l.closedPort(at(f.here, 8089)); got != guest.Reset && got != guest.Refused {
				t.Errorf("a closed port: %v", got)
			}
		}
	})
}

// TestForwardedRules: the engine's rules take effect, and may be added and removed.
func TestForwardedRules(t *testing.T) {
	onEveryDatapathAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		held := 0
		for _, f := range l.families() {
			srv, reached := l.serve(l.There, at(f.there, 0), guest.Echo)
			const n = 20
			box.hold(srv, n)
			held += n
			e.loadRules(guest.LoadMasquerade{Drop: srv.Port()})
			box.wantNoAnswer(srv, 1200*time.Millisecond)
			do(e, guest.FlushRules{})
			box.wantNoAnswer(srv, 1200*time.Millisecond) // without rules its packets are not masqueraded
			if reached.count() != n {
				t.Errorf("%v was reached %d times", srv, reached.count())
			}
			if l.datapath == "splice" {
				box.wantHeldAnswer(held) // while there are no rules
			}
			for range 3 {
				do(e, guest.FlushRules{})
				e.loadRules(guest.LoadMasquerade{})
				box.wantEcho(srv, "after the rules came back")
			}
			if l.datapath == "splice" {
				box.wantHeldAnswer(held)
			}
		}
	})
}

// TestForwardedFirewall: an input firewall in the namespace with the bridge does not apply to what is forwarded.
func TestForwardedFirewall(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		do(e, guest.LoadFirewall{Loopback: true})
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			box.wantChurn(srv, 20)
		}
		if c := e.counters(); l.datapath == "splice" && c.of(tcpReinjectFails) != 0 {
			t.Errorf("%d re-injected SYNs were not answered", c.of(tcpReinjectFails))
		}
	})
}

// TestForwardedMany: connections one after the other and at once.
func TestForwardedMany(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		two := e.container("two", box2)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
			const n = 1000
			box.wantChurn(srv, n)
			// From the same port of two containers: masquerading gives one of them another.
			for range 5 {
				box.wantEchoWith(guest.Socket{From: at(box1.of(f.here), 7777)}, srv)
				two.wantEchoWith(guest.Socket{From: at(box2.of(f.here), 7777)}, srv)
			}
		}
		if c := e.counters(); l.datapath == "splice" && c.of(tcpReinjectFails) != 0 {
			t.Errorf("%d re-injected SYNs were not answered", c.of(tcpReinjectFails))
		}
	})
}

// TestForwardedAfterKill: when the helper is killed the kernel removes its rules, and the next helper works.
func TestForwardedAfterKill(t *testing.T) {
	onEveryDatapath(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box1)
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		want(box, guest.Held{Count: 5}, guest.Hold{To: guest.To(srv), Count: 5})
		if err := e.a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-e.a.ended
		want(e, 1, guest.CountTables{})                // the engine's
		eventually(e.T, 3*time.Second, func() string { // the surviving process undoes what no descriptor holds
			if rules := e.enter("sh", "-c", "ip rule; ip -6 rule"); strings.Contains(rules, "0x726e") {
				return "left behind:\n" + rules
			}
			return ""
		})
		e.a = e.attach(e.args...)
		box.wantChurn(srv, 20)
		if got := do(box, guest.EchoHeld{}); got.Count != 0 {
			t.Errorf("connections of the helper that was killed: %+v", got)
		}
	})
}

// TestForwardedSourceCheckWithMarks: the kernel may check sources strictly, and by the routes of a packet's mark, as
// wg-quick(8) configures it.
func TestForwardedSourceCheckWithMarks(t *testing.T) {
	l := newLabOn(t, "auto", "splice")
	e := newEngine(t, l)
	box := e.container("one", box1)
	script := "cd /proc/sys/net/ipv4/conf && for f in */src_valid_mark */rp_filter; do echo 1 > $f || exit; done"
	sysctl := e.Here.Command("nsenter", "--target", strconv.Itoa(e.pid), "--user", "--net", "--preserve-credentials", "--", "sh", "-c", script)
	if out, err := sysctl.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range l.families() {
		srv, _ := l.serve(l.There, at(f.there, 0), guest.Echo)
		for range 5 {
			box.wantEcho(srv)
		}
	}
	if c := e.counters(); c.of(tcpSplicedOut) == 0 || c.of(tcpReinjectFails) != 0 {
		t.Errorf("not by the splice path: %v", c.values)
	}
}
