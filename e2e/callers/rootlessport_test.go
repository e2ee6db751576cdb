package callers

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
)

// rootlessport starts the port helper as Podman does, for a namespace that no helper connects; end closes its exit
// descriptor and returns the exit status.
func (g target) rootlessport(child string, mappings ...map[string]any) (end func() error) {
	g.Helper()
	config, err := json.Marshal(map[string]any{"NetNSPath": "/proc/" + g.pid + "/ns/net", "ChildIP": child, "ExitFD": 3, "ReadyFD": 4, "Mappings": mappings})
	if err != nil {
		g.Fatal(err)
	}
	cmd := g.command("nsenter", "-U", "--preserve-credentials", "-t", g.pid, filepath.Join(bins, "rootlessport"))
	cmd.Stdin = bytes.NewReader(config)
	exitW, readyR, text := g.helper(cmd)
	ready, _ := io.ReadAll(readyR)
	readyR.Close()
	if string(ready) != "1" {
		g.Errorf("ready: %q; %s", ready, text.String())
	}
	return func() error {
		exitW.Close()
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if text.Len() > 0 {
				g.Errorf("it printed: %s", text.String())
			}
			return err
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
			g.Error("it did not end")
			return nil
		}
	}
}

// TestRootlessportAlone: no helper of this project connects the namespace, and a server in it still sees its clients' addresses.
// TestPublish in e2e tests the answers to clients; this test covers the change from one helper to the next, and what is left.
func TestRootlessportAlone(t *testing.T) {
	g := newTarget(t)
	g.in("sh", "-c", "ip link set lo up; ip link add d0 type bridge; ip link set d0 up; ip addr add 10.9.9.2/24 dev d0; ip addr add fd99::2/64 dev d0 nodad; ip route add default via 10.9.9.1; ip -6 route add default via fd99::1")
	// The kernel adds the local route of an IPv6 address when the bridge has come up, which takes a moment.
	g.in("sh", "-c", "for i in $(seq 100); do ip -6 route show table local | grep -q fd99::2 && exit 0; sleep 0.1; done; exit 1")
	const settings = "ip rule; ip -6 rule; ip route show table all | grep -v -e fe80: -e ff00:; cd /proc/sys/net; grep . ipv4/tcp_fwmark_accept ipv4/fwmark_reflect ipv6/fwmark_reflect"
	before := g.in("sh", "-c", settings)
	begin(g.user, guest.ServeHTTP{Port: 80}, g.program()...)

	end := g.rootlessport("10.9.9.2", map[string]any{"host_port": 18080, "container_port": 80, "protocol": "tcp,udp"}, map[string]any{"host_port": 18081, "container_port": 81})
	soonSeen(t, 10*time.Second, host4, func() guest.HTTPAnswer { return get(host4, 18080) })
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}
	if after := g.in("sh", "-c", settings); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}

	// A container that is started again in its namespace: the next helper begins before the last has ended.
	end = g.rootlessport("10.9.9.2", map[string]any{"host_port": 18080, "container_port": 80})
	next := make(chan func() error)
	go func() {
		next <- g.rootlessport("10.9.9.2", map[string]any{"host_port": 18082, "container_port": 80})
	}()
	time.Sleep(300 * time.Millisecond)
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}
	end = <-next
	wantSeen(t, "the next helper", get(host4, 18082), host4)
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}
	if after := g.in("sh", "-c", settings); after != before {
		t.Errorf("left behind by the next:\n%s\nbefore:\n%s", after, before)
	}

	end = g.rootlessport("fd99::2", map[string]any{"host_ip": host6, "host_port": 18080, "container_port": 80})
	wantSeen(t, "IPv6 inside", get(host6, 18080), host6)
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}
	// A server that sets a mark of its own on its answers: only plain sockets receive them.
	begin(g.user, guest.ServeHTTP{Port: 8080, Socket: guest.Socket{Mark: 7}}, g.program()...)
	wantSeen(t, "the server with a mark, from inside", g.get("10.9.9.2", 8080), "")
	end = g.rootlessport("10.9.9.2", map[string]any{"host_port": 18080, "container_port": 8080})
	var begin time.Time
	for i := range 6 {
		if i == 3 {
			begin = time.Now()
		}
		wantSeen(t, "a server with a mark", get(host4, 18080), "10.9.9.2")
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("three clients took %v, after three that had to wait for a second each", took)
	}
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}

	end = g.rootlessport("", map[string]any{"host_port": 18080, "container_port": 80})
	wantSeen(t, "the namespace's own loopback", get(host4, 18080), host4)
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}
}
