package callers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
)

// none disables every port that pasta forwards by itself.
var none = []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none"}

// ownHost is a network namespace that serves as the host, so that the test can change the host's interface and addresses.
type ownHost struct{ target }

// newOwnHost has h0 with 192.0.2.10 and .11, and a default route by an address that no machine has.
func newOwnHost(t *testing.T) ownHost {
	t.Helper()
	h := ownHost{newTarget(t)}
	for _, words := range []string{
		"link set lo up", "link add h0 type veth peer name p0", "link set h0 up", "link set p0 up",
		"addr add 192.0.2.10/24 dev h0", "addr add 192.0.2.11/24 dev h0", "route add default via 192.0.2.1",
		"addr add 2001:db8::10/64 dev h0 nodad", "-6 route add default via fe80::99 dev h0",
	} {
		h.ip(words)
	}
	return h
}

func (h ownHost) ip(words string) {
	h.Helper()
	if out, err := h.try(append([]string{"nsenter", "-U", "--preserve-credentials", "-n", "-t", h.pid, "ip"}, strings.Fields(words)...)...); err != nil {
		h.Fatalf("ip %s: %v\n%s", words, err, out)
	}
}

// pasta runs pasta on that host, with an agent as its command.
func (h ownHost) pasta(flags ...string) *agent {
	h.Helper()
	return h.barePasta(append([]string{"--config-net"}, flags...)...)
}

// barePasta is pasta for a namespace that is not configured.
func (h ownHost) barePasta(flags ...string) *agent {
	h.Helper()
	argv := append(append(h.enter(), filepath.Join(bins, "pasta"), "-f"), flags...)
	return h.agent(append(append(argv, self(h.T)), guest.AgentCommand()...)...)
}

// serve answers HTTP and UDP clients on a port of that host, on every address.
func (h ownHost) serve(port uint16) {
	h.Helper()
	begin(h.user, guest.ServeHTTP{Port: port}, h.program()...)
}

// TestPastaFollowsHost: what changes on the host changes in the namespace, and a connection by an address that stays goes on.
func TestPastaFollowsHost(t *testing.T) {
	h := newOwnHost(t)
	h.serve(8000)
	a := h.pasta(append([]string{"--map-guest-addr", "169.254.1.2", "-t", "18000:80"}, none[2:]...)...)
	do(a, guest.ServeHTTP{Port: 80})
	expect(t, "at the beginning", a.sh("ip addr; ip route; ip -6 route"), "192.0.2.10/24", "192.0.2.11/24", "2001:db8::10/64", "default via 192.0.2.1", "default via fe80::99")
	soonSeen(t, 5*time.Second, "192.0.2.10", func() guest.HTTPAnswer { return a.get("http://169.254.1.2:8000/") })

	// The second address takes over; then the host moves to another network.
	h.ip("addr add 198.51.100.7/24 dev h0")
	h.ip("addr del 192.0.2.10/24 dev h0")
	h.ip("addr add 192.0.2.11/24 dev h0")
	h.ip("route replace default via 198.51.100.1")
	h.ip("route add 203.0.113.0/24 via 198.51.100.9")
	h.ip("-6 addr add 2001:db8:2::10/64 dev h0 nodad")
	h.ip("-6 addr del 2001:db8::10/64 dev h0")
	h.ip("-6 route replace default via fe80::77 dev h0")
	wants := []string{"198.51.100.7/24", "192.0.2.11/24", "2001:db8:2::10/64", "default via 198.51.100.1 dev h0", "203.0.113.0/24 via 198.51.100.9 dev h0", "default via fe80::77"}
	eventually(t, 10*time.Second, func() string {
		out := a.sh("ip addr; ip route; ip -6 route")
		for _, w := range wants {
			if !strings.Contains(out, w) {
				return "no " + w + " in\n" + out
			}
		}
		for _, old := range []string{"192.0.2.10/24", "2001:db8::10", "via 192.0.2.1 ", "fe80::99"} {
			if strings.Contains(out, old) {
				return old + " is still there:\n" + out
			}
		}
		return ""
	})
	wantSeen(t, "the address of the host that is mapped", a.get("http://169.254.1.2:8000/"), "198.51.100.7")
	wantSeen(t, "the gateway, which is mapped to the loopback", a.get("http://198.51.100.1:8000/"), "127.0.0.1")
	wantSeen(t, "a published port", h.get("198.51.100.7", 18000), "198.51.100.1")
}

// TestPastaSeveralNextHops: a default route by several gateways becomes a route by the first.
func TestPastaSeveralNextHops(t *testing.T) {
	h := newOwnHost(t)
	h.ip("route replace default nexthop via 192.0.2.1 nexthop via 192.0.2.2")
	expect(t, "inside", h.pasta(none...).sh("ip addr; ip route"), " h0", "192.0.2.10/24", "default via 192.0.2.1")
}

// TestPastaRefusals: the error texts and the exit status of the original.
func TestPastaRefusals(t *testing.T) {
	h := newOwnHost(t)
	for words, args := range map[string][]string{
		"Failed to start command or shell: No such file or directory": append([]string{"--config-net"}, append(none, "/nonexistent")...),
		"IPv6 forward, but IPv6 not enabled":                          {"-4", "-t", "::1/8080", "true"},
	} {
		cmd := h.command(append([]string{"nsenter", "-U", "--preserve-credentials", "-n", "-t", h.pid, filepath.Join(bins, "pasta")}, args...)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), words) {
			t.Errorf("%v: %v, %s; want %q", args, err, out, words)
		}
	}
}

// TestPastaConnectionsGoOn: an address is added and a route changed; existing connections go on.
func TestPastaConnectionsGoOn(t *testing.T) {
	h := newOwnHost(t)
	h.serve(8000)
	begin(h.user, guest.ServeTCP{Server: guest.Echo, Port: 8001}, h.program()...)
	a := h.pasta(none...)
	soonSeen(t, 5*time.Second, "", func() guest.HTTPAnswer { return a.get("http://192.0.2.1:8000/") })
	for i, host := range []string{"192.0.2.1", "fe80::99%h0"} {
		got := do(a, guest.Hold{To: guest.Target{Host: host, Port: 8001}, Count: 1})
		if got != (guest.Held{Count: i + 1}) {
			t.Fatalf("connection to %s: %+v", host, got)
		}
	}
	h.ip("addr add 198.51.100.7/24 dev h0")
	h.ip("addr del 192.0.2.11/24 dev h0")
	h.ip("-6 addr add 2001:db8:2::10/64 dev h0 nodad")
	eventually(t, 10*time.Second, func() string {
		out := a.sh("ip addr")
		if !strings.Contains(out, "198.51.100.7/24") || !strings.Contains(out, "2001:db8:2::10/64") || strings.Contains(out, "192.0.2.11") {
			return out
		}
		return ""
	})
	if got := do(a, guest.EchoHeld{}); got != (guest.Held{Count: 2}) {
		t.Errorf("connections from before: %+v", got)
	}
}

// TestPastaLoopbackOut: ports of the namespace's loopback are forwarded to the host's: those that are named, or those on which
// a server of the host listens.
func TestPastaLoopbackOut(t *testing.T) {
	need(t, "ss")
	h := newOwnHost(t)
	h.serve(8000)
	t.Run("by number", func(t *testing.T) {
		h := ownHost{target{&user{T: t, home: h.home, runtime: h.runtime, env: h.env}, h.pid}}
		a := h.pasta("-t", "none", "-u", "none", "-T", "80:8000,7000", "-U", "53:8000")
		wantSeen(t, "TCP", a.get("http://127.0.0.1:80/"), "127.0.0.1")
		wantSeen(t, "TCP by IPv6", a.get("http://[::1]:80/"), "::1")
		wantSeen(t, "TCP to another loopback address", a.get("http://127.0.0.9:80/"), "127.0.0.1")
		wantUDPSeen(t, "UDP", a.ask("127.0.0.1", 53), "127.0.0.1")
		wantUDPSeen(t, "UDP by IPv6", a.ask("::1", 53), "::1")
		for _, host := range []string{"127.0.0.1", "::1"} {
			wantBulk(t, "much data to "+host, do(a, guest.MoveBulk{Server: guest.Target{Host: host, Port: 80}}))
		}
		wantOutcome(t, "a port on which no server listens", a.get("http://127.0.0.1:7000/"), guest.Reset)
		wantOutcome(t, "a port that was not named", a.get("http://127.0.0.1:8000/"), guest.Refused)
	})
	t.Run("auto", func(t *testing.T) {
		h := ownHost{target{&user{T: t, home: h.home, runtime: h.runtime, env: h.env}, h.pid}}
		a := h.pasta()
		wantSeen(t, "TCP to a server of the host", a.get("http://127.0.0.1:8000/"), "127.0.0.1")
		wantUDPSeen(t, "UDP to a server of the host", a.ask("127.0.0.1", 8000), "127.0.0.1")
		// A server inside is published, and the port that is opened on the host for it is not forwarded back.
		do(a, guest.ServeHTTP{Port: 8001})
		a.sh("sleep 2.5")
		wantSeen(t, "a server inside", h.get("192.0.2.10", 8001), "")
		listeners := a.sh("ss -Hltn")
		expect(t, "listeners inside", listeners, "*:8001", "%lo:8000")
		if strings.Contains(listeners, "%lo:8001") {
			t.Errorf("the server's own port is forwarded back:\n%s", listeners)
		}
	})
	t.Run("closed", func(t *testing.T) {
		h := ownHost{target{&user{T: t, home: h.home, runtime: h.runtime, env: h.env}, h.pid}}
		wantOutcome(t, "none", h.pasta(none...).get("http://127.0.0.1:8000/"), guest.Refused)
	})
}

// TestPastaLoopbackIn: with --host-lo-to-ns-lo a client on the host's loopback reaches a server on the namespace's.
func TestPastaLoopbackIn(t *testing.T) {
	h := newOwnHost(t)
	a := h.pasta(append([]string{"--host-lo-to-ns-lo", "-t", "18000:80", "-u", "18000:80"}, none[4:]...)...)
	do(a, guest.ServeHTTP{Port: 80})
	soonSeen(t, 5*time.Second, "127.0.0.1", func() guest.HTTPAnswer { return h.get("127.0.0.1", 18000) })
	wantSeen(t, "IPv6", h.get("::1", 18000), "::1")
	wantUDPSeen(t, "UDP", h.ask("127.0.0.1", 18000), "127.0.0.1")
	wantUDPSeen(t, "UDP by IPv6", h.ask("::1", 18000), "::1")
	wantSeen(t, "by another address", h.get("192.0.2.10", 18000), "192.0.2.1")
	wantBulk(t, "much data", once(h.user, guest.MoveBulk{Server: guest.Target{Host: "127.0.0.1", Port: 18000}}, h.program()...))
}

// TestPastaOwnAddresses: a client on the host that connects to an address which the namespace has as well appears as the
// gateway, whichever of the addresses it is: a kernel drops packets that come by the link from one of its own addresses.
func TestPastaOwnAddresses(t *testing.T) {
	for _, flags := range [][]string{nil, {"--no-splice"}} {
		h := newOwnHost(t)
		h.ip("addr add 198.51.100.7/24 dev h0")
		a := h.pasta(append(append([]string{"-t", "18000:80", "-u", "18000:80"}, none[4:]...), flags...)...)
		do(a, guest.ServeHTTP{Port: 80})
		soonSeen(t, 5*time.Second, "192.0.2.1", func() guest.HTTPAnswer { return h.get("192.0.2.10", 18000) })
		wantSeen(t, "the second address", h.get("198.51.100.7", 18000), "192.0.2.1")
		for _, addr := range []string{"192.0.2.10", "198.51.100.7"} {
			wantUDPSeen(t, "UDP by "+addr, h.ask(addr, 18000), "192.0.2.1")
		}
		wantSeen(t, "IPv6", h.get("2001:db8::10", 18000), "fe80::99")
	}
}

// TestPastaOutlives: with --no-netns-quit pasta goes on when the path of the namespace was removed; without it pasta ends.
func TestPastaOutlives(t *testing.T) {
	need(t, "busybox")
	for _, stays := range []bool{false, true} {
		h := newOwnHost(t)
		path := filepath.Join(h.home, "ns")
		if err := os.Symlink("/proc/"+h.pid+"/ns/net", path); err != nil {
			t.Fatal(err)
		}
		pidFile := filepath.Join(h.home, "pid")
		argv := append([]string{filepath.Join(bins, "pasta"), "--netns", path, "--userns", "/proc/" + h.pid + "/ns/user", "-P", pidFile}, none...)
		if stays {
			argv = append(argv, "--no-netns-quit")
		}
		h.run(argv...)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if stays {
			time.Sleep(2500 * time.Millisecond) // longer than the interval at which the path is checked
			text, err := os.ReadFile(pidFile)
			if err != nil || len(running("pasta")) == 0 {
				t.Errorf("it has ended, or %v", err)
			}
			h.run("kill", strings.TrimSpace(string(text)))
		}
		noneLeft(t, "pasta")
	}
}

// TestPastaDHCP: a namespace that configures itself gets the host's address and what --dhcp-dns announces.
func TestPastaDHCP(t *testing.T) {
	need(t, "busybox")
	h := newOwnHost(t)
	script := filepath.Join(h.home, "bound")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" != bound ] || echo got $ip/$mask by $router dns $dns search $search name $hostname\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dhcp := fmt.Sprintf("ip link set h0 up; busybox udhcpc -n -q -t 5 -T 1 -i h0 -O search -s %s", script)
	run := func(flags ...string) string {
		argv := append([]string{"nsenter", "-U", "--preserve-credentials", "-n", "-t", h.pid, filepath.Join(bins, "pasta"), "-f"}, none...)
		out, err := h.try(append(append(argv, flags...), "sh", "-c", dhcp)...)
		if _, failed := err.(*exec.ExitError); err != nil && !failed {
			t.Fatal(err)
		}
		return out
	}
	expect(t, "no names announced", run("-D", "192.0.2.53", "-S", "example.org"), "got 192.0.2.10/24 by 192.0.2.1 dns search name")
	expect(t, "names announced", run("-D", "192.0.2.53", "-S", "example.org", "--dhcp-dns", "--dhcp-search", "-H", "box"),
		"got 192.0.2.10/24 by 192.0.2.1 dns 192.0.2.53 search example.org name box")
	expect(t, "the forwarding address", run("--dhcp-dns", "--dns-forward", "169.254.1.1"), "dns 169.254.1.1 search")
	expect(t, "off", run("--no-dhcp"), "no lease")

	a := h.barePasta(none...)
	expect(t, "before the host moves", a.sh(dhcp), "got 192.0.2.10/24 by 192.0.2.1")
	h.ip("addr add 198.51.100.7/25 dev h0")
	h.ip("addr del 192.0.2.10/24 dev h0")
	h.ip("addr flush dev h0 to 192.0.2.0/24")
	h.ip("route replace default via 198.51.100.1")
	eventually(t, 10*time.Second, func() string {
		if out := a.sh(dhcp); !strings.Contains(out, "got 198.51.100.7/25 by 198.51.100.1") {
			return out
		}
		return ""
	})
}

// TestPastaFiles: messages go to a log of bounded size and frames to a capture file, and a signal ends pasta.
func TestPastaFiles(t *testing.T) {
	for _, signal := range []string{"TERM", "QUIT"} {
		g := newTarget(t)
		file := func(name string) string { return filepath.Join(g.home, name) }
		out := g.run(append([]string{filepath.Join(bins, "pasta"), "--config-net", "-d", "-l", file("log"), "--log-size", "4096", "-p", file("pcap"), "-P", file("pid")}, append(none[:len(none):len(none)], g.pid)...)...)
		if out != "" {
			t.Errorf("it printed %q", out)
		}
		g.in("ip", "link")
		g.get("198.51.100.254", 1)
		eventually(t, 5*time.Second, func() string {
			text, err := os.ReadFile(file("pcap"))
			if err != nil || len(text) < 24+16+42 { // a header, and a frame with its own
				return fmt.Sprint(len(text), err)
			}
			return ""
		})
		if st, err := os.Stat(file("log")); err != nil || st.Size() > 4096 {
			t.Errorf("log: %v, %v", st, err)
		}
		pid, err := os.ReadFile(file("pid"))
		if err != nil {
			t.Fatal(err)
		}
		if name, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "comm")); string(name) != "pasta\n" {
			t.Errorf("the process is called %q (%v)", name, err)
		}
		g.run("kill", "-"+signal, strings.TrimSpace(string(pid)))
		noneLeft(t, "pasta")
		eventually(t, 5*time.Second, func() string {
			if links := g.in("ip", "link"); strings.Contains(links, "lan0") {
				return links
			}
			return ""
		})
	}
}
