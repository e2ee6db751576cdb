package callers

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// counters are those of the helper under the bridges.
func (p pod) counters() map[string]uint64 {
	p.Helper()
	manage := filepath.Join(bins, "rootless-net")
	var stats struct {
		Counters map[string]uint64 `json:"counters"`
	}
	if err := json.Unmarshal([]byte(p.run(manage, "stats", "-o", "json", strings.TrimSpace(p.run(manage, "ps", "-q")))), &stats); err != nil {
		p.Fatal(err)
	}
	return stats.Counters
}

// TestPodmanBridgeByTheKernel: the connections of containers on a bridge are joined by the kernel, out and in, beside netavark's
// rules; those that stand outlive the rules, and the next follow new rules.
func TestPodmanBridgeByTheKernel(t *testing.T) {
	need(t, "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns")
	p := newPodman(t)
	port := serveHost(t)
	p.podman("network", "create", "net1")
	p.serve("srv", "--network", "net1", "-p", "18080:80", "-p", "18080:80/udp")
	out := p.podman("run", "--rm", "--network", "net1", "img", "/bin/probe", probeWord, "get", "http://"+host4+":9/", "http://srv:9/", "http://srv/")
	expect(t, "refusals", out, host4+":9: connect: connection refused", ":9: connect: connection refused", "http://srv/: you are 10.")
	// From here until the rules have gone no container comes or goes: the bridge has the link address of one of its ports, and
	// for some time its neighbours do not know when that has changed.
	const n = 5
	p.podman("run", "-d", "--name", "holder", "--network", "net1", "img", "/bin/probe", probeWord, "keep", host4+":"+port, fmt.Sprint(n))
	eventually(t, 10*time.Second, func() string {
		if c := p.counters(); c["now.tcp.spliced"] != n || c["now.tcp.connections"] != n {
			return fmt.Sprintf("of %d connections out, %d are spliced", c["now.tcp.connections"], c["now.tcp.spliced"])
		}
		return ""
	})
	// A published port leads into the container, by neither the bridge nor the helper: nothing of what follows concerns it.
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
	if c := p.counters(); c["now.tcp.spliced"] != n {
		t.Errorf("with one more, in, %d are spliced by the helper", c["now.tcp.spliced"])
	}
	published(t, "18080")
	p.podman("unshare", "--rootless-netns", self(t), probeWord, "flush")
	answers := func() (text string, rounds int) {
		text = p.podman("logs", "holder")
		return text, strings.Count(text, "\n")
	}
	_, before := answers()
	eventually(t, 5*time.Second, func() string {
		if text, now := answers(); now < before+3 {
			return text
		}
		return ""
	})
	stillIn("without rules")
	if text, rounds := answers(); strings.Count(text, fmt.Sprintf(": %d answered", n)) != rounds {
		t.Errorf("connections that were there did not outlive the rules:\n%s", text)
	}
	p.podman("network", "reload", "--all")
	out = p.podman("run", "--rm", "--network", "net1", "img", "/bin/probe", probeWord, "get", "http://srv/", "http://"+host4+":"+port+"/")
	stillIn("after the rules came back")
	expect(t, "after the rules came back", out, "http://srv/: you are 10.", "http://"+host4+":"+port+"/: you are "+host4)
	published(t, "18080")
	for range 3 { // the next helper of the ports may begin before the last has ended
		p.podman("restart", "-t", "0", "srv")
		published(t, "18080")
	}
	p.podman("rm", "-f", "-t", "0", "-a")
	gone(t, "slirp4netns", "rootlessport")
}
