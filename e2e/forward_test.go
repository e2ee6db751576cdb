package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
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

// What a namespace forwards: containers on a bridge in it, masqueraded by rules of their engine, not ours.

// Addresses on the bridge.
const (
	bridge4, bridge6 = "10.89.0.1", "fd89::1"
	net4, net6       = "10.89.0.0/24", "fd89::/64"
	box4, box6       = "10.89.0.2", "fd89::2"
	boxTwo4, boxTwo6 = "10.89.0.3", "fd89::3"
)

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
	e.do("bridge", "br0", bridge4+"/24", bridge6+"/64")
	e.loadRules()
	return e
}

func (e *engine) loadRules(more ...any) {
	e.Helper()
	e.want("loaded", append([]any{"masquerade", net4, net6}, more...)...)
}

// container is an agent in a namespace of its own, on the bridge.
func (e *engine) container(name, addr4, addr6 string) *sandbox {
	e.Helper()
	s := e.agentBeside(name)
	e.do("cable", "br0", s.cmd.Process.Pid, "eth0")
	s.do("address", "eth0", addr4+"/24", addr6+"/64", bridge4, bridge6)
	return s
}

// agentBeside is an agent in a namespace of its own, not connected yet.
func (e *engine) agentBeside(name string) *sandbox {
	e.Helper()
	argv := append([]string{"nsenter", "--target", strconv.Itoa(e.pid), "--user", "--net", "--preserve-credentials", "--", "unshare", "--net", "--"}, op("agent")...)
	return e.agent(name, e.Here.Command(argv...))
}

// wantSpliced expects that the kernel joins so many connections, and that there are no others.
func (e *engine) wantSpliced(want uint64) {
	e.Helper()
	if e.datapath == "stack" {
		return
	}
	eventually(e.T, 2*time.Second, func() string {
		if c := e.counters(); c["now.tcp.spliced"] != want || c["now.tcp.connections"] != want {
			return fmt.Sprintf("%d connections, %d spliced; want %d", c["now.tcp.connections"], c["now.tcp.spliced"], want)
		}
		return ""
	})
}

func TestForwarded(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		two := e.container("two", boxTwo4, boxTwo6)
		two.do("serve-tcp", ":80")
		e.do("serve-tcp", ":80")
		held := 0
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			got := box.do("exchange", srv, "hello")
			if peer, text, _ := strings.Cut(got, " "); !strings.HasPrefix(peer, at(f.here, 0)[:len(at(f.here, 0))-1]) || text != "hello" {
				t.Errorf("exchange with %v: %q", srv, got)
			}
			half, _ := l.serve(l.There, at(f.there, 0), guest.SumAfterEOF)
			box.want("same", "half", half, 3_000_000)
			reset, _ := l.serve(l.There, at(f.there, 0), guest.ResetAfterByte)
			box.wantFirst("ECONNRESET", "reset", reset)
			ends := make(chan string, 1)
			tell, _ := l.serve(l.There, at(f.there, 0), func(c *net.TCPConn) { ends <- guest.Tell(c) })
			box.want("ok", "abort", tell)
			if got := <-ends; got != "1 ECONNRESET" {
				t.Errorf("the server at %v got %q", tell, got)
			}
			box.wantFirst("ECONNREFUSED", "connect", at(f.there, 9))
			udp, _ := l.serveUDP(l.There, at(f.there, 0))
			if got := box.do("udp", udp, "hello"); !strings.HasSuffix(got, " hello") {
				t.Errorf("udp with %v: %q", udp, got)
			}
			const n = 50
			box.do("hold", srv, n)
			held += n
			e.wantSpliced(uint64(held))
			box.want(fmt.Sprint(held), "hold-echo")
		}
		box.wantFirst("EHOSTUNREACH", "connect", at(topo.Unreachable4, 9))
		box.wantFirst("TIMEOUT", "connect", at(topo.Blackhole4, 9), "1500ms")
		for _, a := range []string{boxTwo4, boxTwo6, bridge4, bridge6} {
			if got := box.do("exchange", net.JoinHostPort(a, "80"), "hello"); !strings.HasSuffix(got, " hello") {
				t.Errorf("within the namespace, with %s: %q", a, got)
			}
		}
	})
}

// publish leads a port of the host to a container, as rootlessport does.
func (e *engine) publish(port int, to netip.AddrPort) {
	e.Helper()
	client := http.Client{Timeout: opPatience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", e.socket)
	}}}
	body := fmt.Sprintf(`{"proto":"tcp","parentIP":%q,"parentPort":%d,"childIP":%q,"childPort":%d}`, e.families()[0].here, port, to.Addr(), to.Port())
	if to.Addr().Is6() {
		body = fmt.Sprintf(`{"proto":"tcp","parentIP":%q,"parentPort":%d,"childIP":%q,"childPort":%d}`, topo.Here6, port, to.Addr(), to.Port())
	}
	resp, err := client.Post("http://engine/v1/ports", "application/json", strings.NewReader(body))
	if err != nil {
		e.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		e.Fatalf("publish %s: %s %s", body, resp.Status, text)
	}
}

// TestForwardedOptions: what sockets in containers can be told. A TTL that hides the hop makes a connection look like one of the
// namespace's own, whose offer goes astray: the stack takes it, a second later.
func TestForwardedOptions(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			for _, options := range []string{"fastopen", "mptcp", "device=eth0", "ttl=10", "ttl=128", "ttl=255", "ttl=65"} {
				if got := box.do("exchange-as", options, srv, "hello"); !strings.HasSuffix(got, " hello") {
					t.Errorf("%s to %v: %q", options, srv, got)
				}
			}
			want := "abcdef abcdef ! at 3 ! at 3"
			if l.datapath == "stack" {
				want = "abc!def abc!def none none"
			}
			urgent, _ := l.serve(l.There, at(f.there, 0), guest.UrgentServer)
			box.want(want, "urgent", urgent)
			closing, _ := l.serve(l.There, at(f.there, 0), func(c *net.TCPConn) {
				if got, err := guest.CloseTogether(c); err != nil || got != "same" {
					t.Errorf("the server got %q, %v", got, err)
				}
			})
			box.want("same", "close", closing, 100)
		}
	})
}

// TestForwardedHairpin: a container comes to its own published port, and to that of its neighbour, by the host's address.
func TestForwardedHairpin(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		e.loadRules("-open")
		box := e.container("one", box4, box6)
		two := e.container("two", boxTwo4, boxTwo6)
		two.do("serve-tcp", ":80")
		e.publish(8080, netip.MustParseAddrPort(boxTwo4+":80"))
		for range 3 {
			for _, s := range []*sandbox{box, two} {
				if got := s.do("exchange", at(topo.Here4, 8080), "hello"); !strings.HasPrefix(got, topo.Here4.String()+":") || !strings.HasSuffix(got, " hello") {
					t.Errorf("%s: %q", s.name, got)
				}
			}
		}
	})
}

// TestForwardedAddressChanges: connections begin anew with another address of the namespace, and with another bridge.
func TestForwardedAddressChanges(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		box.want("5", "churn", srv, 5)
		e.do("unaddress", "eth0", guest4+"/24")
		e.do("address", "eth0", "10.0.2.101/24", gateway4)
		box.want("5", "churn", srv, 5)
		e.do("bridge", "br1", "10.90.0.1/24")
		e.want("loaded", "masquerade", net4, net6, "10.90.0.0/24")
		other := e.agentBeside("three")
		e.do("cable", "br1", other.cmd.Process.Pid, "eth0")
		other.do("address", "eth0", "10.90.0.2/24", "10.90.0.1")
		for _, s := range []*sandbox{box, other} {
			s.want("10", "hold", srv, 10)
		}
		e.wantSpliced(20)
		e.do("unlink", "br1")
		e.do("bridge", "br1", "10.90.0.1/24")
		e.do("join", "br1", fmt.Sprint("v", other.cmd.Process.Pid))
		other.want("10", "hold-echo")
	})
}

// TestForwardedAstray: what a container sends to a link address that the bridge no longer has is lost, and the connection is not.
func TestForwardedAstray(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		e.container("two", boxTwo4, boxTwo6) // to which the bridge passes on what it does not know
		for i, f := range l.families() {
			gateway := []string{bridge4, bridge6}[i]
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			box.do("hold", srv, 1)
			box.want("believed", "believe", "eth0", gateway, "02:00:00:00:00:99")
			if got := box.do("hold-echo", "700ms"); !strings.HasPrefix(got, "0 ") {
				t.Errorf("to the wrong link address: %q", got)
			}
			box.want("forgotten", "believe", "eth0", gateway)
			box.want("1", "hold-echo")
			box.do("drop-held")
		}
	})
}

// TestForwardedPublished: a container behind a published port sees the client's own address.
func TestForwardedPublished(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		e.loadRules("-open") // the stack's way to a container is forwarded, as any client's
		box := e.container("one", box4, box6)
		box.do("serve-tcp", ":80")
		box.do("serve-half", ":81")
		boxes := []string{box4, box6}
		for i, f := range l.families() {
			to := netip.MustParseAddr(boxes[i])
			e.publish(8080, netip.AddrPortFrom(to, 80))
			e.publish(8081, netip.AddrPortFrom(to, 81))
			e.publish(8089, netip.AddrPortFrom(to, 9))
			wantClient := func() {
				c := l.connectTo(l.There, at(f.here, 8080))
				got, err := guest.Exchange(c, "hello")
				if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
					t.Errorf("%q, %v; want %q", got, err, want)
				}
			}
			wantClient() // by the stack, perhaps: the namespace is made ready meanwhile
			eventually(t, 2*time.Second, func() string {
				c := l.connectTo(l.There, at(f.here, 8080))
				defer c.Close()
				if _, err := c.Read(make([]byte, 1)); err != nil { // of the greeting
					return err.Error()
				}
				if n := e.counters()["now.tcp.spliced"]; l.datapath == "splice" && n == 0 {
					return "by the stack"
				}
				return ""
			})
			wantClient()
			if got, err := guest.HalfClose(l.connectTo(l.There, at(f.here, 8081)), 3_000_000); err != nil || got != "same" {
				t.Errorf("half-closed: %q, %v", got, err)
			}
			if c, err := l.There.Dial("tcp", at(f.here, 8089), opPatience); err == nil { // or the reset was there first
				if _, err := c.Read(make([]byte, 1)); guest.Errno(err) != "ECONNRESET" {
					t.Errorf("a closed port: %v", err)
				}
				c.Close()
			}
		}
	})
}

// TestForwardedRules: the engine's rules are obeyed, and may come and go.
func TestForwardedRules(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		held := 0
		for _, f := range l.families() {
			srv, reached := l.serve(l.There, at(f.there, 0), echo)
			const n = 20
			box.do("hold", srv, n)
			held += n
			e.loadRules("-drop", srv.Port())
			box.wantFirst("TIMEOUT", "connect", srv, "1200ms")
			e.want("flushed", "nft-flush")
			box.wantFirst("TIMEOUT", "connect", srv, "1200ms") // nobody masquerades it
			if reached.count() != n {
				t.Errorf("%v was reached %d times", srv, reached.count())
			}
			if l.datapath == "splice" {
				box.want(fmt.Sprint(held), "hold-echo") // while there are no rules
			}
			for range 3 {
				e.want("flushed", "nft-flush")
				e.loadRules()
				if got := box.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
					t.Errorf("after the rules came back: %q", got)
				}
			}
			if l.datapath == "splice" {
				box.want(fmt.Sprint(held), "hold-echo")
			}
		}
	})
}

// TestForwardedFirewall: one that lets in what belongs to connections, in the namespace with the bridge, has no part in
// what is forwarded.
func TestForwardedFirewall(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		e.want("loaded", "nft-input", "lo")
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			box.want("20", "churn", srv, 20)
		}
		if c := e.counters(); l.datapath == "splice" && c["tcp.unanswered"] != 0 {
			t.Errorf("%d offers were not answered", c["tcp.unanswered"])
		}
	})
}

// TestForwardedMany: connections one after the other and at once.
func TestForwardedMany(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		two := e.container("two", boxTwo4, boxTwo6)
		for _, f := range l.families() {
			srv, _ := l.serve(l.There, at(f.there, 0), echo)
			const n = 1000
			box.want(fmt.Sprint(n), "churn", srv, n)
			// From the same port of two containers: masquerading gives one of them another.
			for range 5 {
				for i, s := range []*sandbox{box, two} {
					from := [][]string{{box4, box6}, {boxTwo4, boxTwo6}}[i][0]
					if f.here.Is6() {
						from = [][]string{{box4, box6}, {boxTwo4, boxTwo6}}[i][1]
					}
					if got := s.do("exchange-as", "from="+net.JoinHostPort(from, "7777"), srv, "hello"); !strings.HasSuffix(got, " hello") {
						t.Errorf("from %s: %q", from, got)
					}
				}
			}
		}
		if c := e.counters(); l.datapath == "splice" && c["tcp.unanswered"] != 0 {
			t.Errorf("%d offers were not answered", c["tcp.unanswered"])
		}
	})
}

// TestForwardedAfterKill: when the helper is killed its rules go with it, and the next one takes over.
func TestForwardedAfterKill(t *testing.T) {
	onEveryRoad(t, func(t *testing.T, l *lab) {
		e := newEngine(t, l)
		box := e.container("one", box4, box6)
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		box.want("5", "hold", srv, 5)
		if err := e.a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-e.a.ended
		e.want("1", "nft-tables")                      // the engine's
		eventually(e.T, 3*time.Second, func() string { // the agent takes back what no descriptor holds
			if rules := e.enter("sh", "-c", "ip rule; ip -6 rule"); strings.Contains(rules, "0x726e") {
				return "left behind:\n" + rules
			}
			return ""
		})
		e.a = e.attach(e.args...)
		box.want("20", "churn", srv, 20)
		if got, _, _ := strings.Cut(box.do("hold-echo"), " "); got != "0" {
			t.Errorf("connections of the helper that was killed: %q", got)
		}
	})
}

// TestForwardedSourceCheckWithMarks: the kernel may check sources strictly, and by the routes of a packet's mark, as
// wg-quick(8) has it do.
func TestForwardedSourceCheckWithMarks(t *testing.T) {
	l := newLabOn(t, "auto", "splice")
	e := newEngine(t, l)
	box := e.container("one", box4, box6)
	script := "cd /proc/sys/net/ipv4/conf && for f in */src_valid_mark */rp_filter; do echo 1 > $f || exit; done"
	sysctl := e.Here.Command("nsenter", "--target", strconv.Itoa(e.pid), "--user", "--net", "--preserve-credentials", "--", "sh", "-c", script)
	if out, err := sysctl.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range l.families() {
		srv, _ := l.serve(l.There, at(f.there, 0), echo)
		for range 5 {
			if got := box.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
				t.Fatalf("exchange with %v: %q", srv, got)
			}
		}
	}
	if c := e.counters(); c["tcp.spliced-bytes-out"] == 0 || c["tcp.unanswered"] != 0 {
		t.Errorf("not by the kernel's road: %v", c)
	}
}
