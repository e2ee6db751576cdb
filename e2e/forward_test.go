package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
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
	a    *attached
	args []string
}

// newEngine makes the bridge before or after the namespace is connected: engines do it afterwards.
func newEngine(t *testing.T, l *lab) *engine {
	t.Helper()
	n := l.holder()
	e := &engine{namespace: n, args: []string{"--configure", "--name", "engine", "--api-socket", filepath.Join(t.TempDir(), "s"), strconv.Itoa(n.pid)}}
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
	argv := append([]string{"nsenter", "--target", strconv.Itoa(e.pid), "--user", "--net", "--preserve-credentials", "--", "unshare", "--net", "--"}, op("agent")...)
	s := e.agent(name, e.Here.Command(argv...))
	e.do("cable", "br0", s.cmd.Process.Pid, "eth0")
	s.do("address", "eth0", addr4+"/24", addr6+"/64", bridge4, bridge6)
	return s
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
	onEveryLink(t, func(t *testing.T, l *lab) {
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
