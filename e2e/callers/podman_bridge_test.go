package callers

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
)

// connections counts the TCP connections of the helper that connects the namespace of the bridges, and those of them that
// the kernel splices.
func (p pod) connections() (all, spliced uint64) {
	p.Helper()
	manage := filepath.Join(bins, "rootless-net")
	var stats struct {
		Counters map[string]uint64 `json:"counters"`
	}
	if err := json.Unmarshal([]byte(p.run(manage, "stats", "-o", "json", strings.TrimSpace(p.run(manage, "ps", "-q")))), &stats); err != nil {
		p.Fatal(err)
	}
	all, ok := stats.Counters["now.tcp.connections"]
	spliced, ok2 := stats.Counters["now.tcp.spliced"]
	if !ok || !ok2 {
		p.Fatalf("the counters are missing: %v", stats.Counters)
	}
	return all, spliced
}

// TestPodmanBridgeSpliced: connections of containers on a bridge are spliced by the kernel, out and in, beside netavark's
// rules; established ones survive a flush of the rules, and new ones follow the new rules.
func TestPodmanBridgeSpliced(t *testing.T) {
	need(t, "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns")
	p := newPodman(t)
	port, echo := serveHost(t), serveEcho(t)
	p.podman("network", "create", "net1")
	p.serve("srv", "--network", "net1", "-p", "18080:80", "-p", "18080:80/udp")
	a := p.container("--network", "net1")
	wantOutcome(t, "a closed port of the host", a.get(url(host4, 9)), guest.Refused)
	wantOutcome(t, "a closed port of a container", a.get("http://srv:9/"), guest.Refused)
	wantSeen(t, "a container of the network", a.get("http://srv/"), "")
	a.wantEnd()
	// From here until the rules are flushed no container starts or ends: the bridge has the link address of one of its ports, and
	// when that changes its neighbours have the old one for some time.
	const n = 5
	holder := p.container("--network", "net1")
	if got := do(holder, guest.Hold{To: guest.Target{Host: host4, Port: echo}, Count: n}); got != (guest.Held{Count: n}) {
		t.Fatalf("connections out: %+v", got)
	}
	eventually(t, 10*time.Second, func() string {
		if all, spliced := p.connections(); all != n || spliced != n {
			return fmt.Sprintf("of %d connections out, %d are spliced", all, spliced)
		}
		return ""
	})
	// A published port is forwarded into the container by rootlessport, past the bridge and the helper: the rules
	// below do not apply to it.
	in, err := net.DialTimeout("tcp", host4+":18080", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	stillIn := func(when string) {
		t.Helper()
		_ = in.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(in, "GET / HTTP/1.1\r\nHost: probe\r\n\r\n")
		buf := make([]byte, 4096)
		n, _ := in.Read(buf)
		expect(t, "a connection into the container "+when, string(buf[:n]), "you are "+host4)
	}
	stillIn("at first")
	if _, spliced := p.connections(); spliced != n {
		t.Errorf("with one more, in, %d are spliced by the helper", spliced)
	}
	published(t, 18080)
	once(p.user, guest.FlushRules{}, podmanWords("unshare", "--rootless-netns", self(t))...)
	for range 3 {
		if got := do(holder, guest.EchoHeld{}); got != (guest.Held{Count: n}) {
			t.Errorf("connections that were there did not outlive the rules: %+v", got)
		}
		time.Sleep(200 * time.Millisecond)
	}
	stillIn("without rules")
	p.podman("network", "reload", "--all")
	a = p.container("--network", "net1")
	stillIn("after the rules came back")
	wantSeen(t, "a container of the network, after the rules came back", a.get("http://srv/"), "")
	wantSeen(t, "the host, after the rules came back", a.get(url(host4, port)), host4)
	a.wantEnd()
	published(t, 18080)
	for range 3 { // the next helper of the ports may begin before the last has ended
		p.podman("restart", "-t", "0", "srv")
		published(t, 18080)
	}
	holder.wantEnd()
	p.podman("rm", "-f", "-t", "0", "-a")
	noneLeft(t, "slirp4netns", "rootlessport")
}
