package callers

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// none closes every way that pasta opens by itself.
var none = []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none"}

// ownHost is a network namespace that stands for the host: its interface and addresses are the test's to change.
type ownHost struct{ target }

// newOwnHost has h0 with 192.0.2.10 and .11, and a route to an address that nobody has.
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

// begin starts a program in the namespace, which ends with the test.
func (g target) begin(argv ...string) (in io.Writer, out *bufio.Scanner) {
	g.Helper()
	cmd := g.command(append([]string{"nsenter", "-U", "--preserve-credentials", "-n", "-t", g.pid}, argv...)...)
	w, err := cmd.StdinPipe()
	if err != nil {
		g.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		g.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return w, bufio.NewScanner(r)
}

// until reads lines up to one with that text, and returns them.
func until(t *testing.T, out *bufio.Scanner, text string) (lines string) {
	t.Helper()
	for out.Scan() {
		lines += out.Text() + "\n"
		if strings.Contains(out.Text(), text) {
			return lines
		}
	}
	t.Fatalf("no %q came after\n%s", text, lines)
	return ""
}

// shell is a command of pasta's that does what it is told: each line of its input is a script.
func (h ownHost) shell(flags ...string) func(script string) string {
	h.Helper()
	return h.bareShell(append([]string{"--config-net"}, flags...)...)
}

// bareShell is shell in a namespace that is not configured.
func (h ownHost) bareShell(flags ...string) func(script string) string {
	h.Helper()
	argv := append([]string{filepath.Join(bins, "pasta"), "-f"}, flags...)
	in, out := h.begin(append(argv, "sh", "-c", `while read -r line; do eval "$line"; echo "-- done"; done`)...)
	do := func(script string) string {
		h.Helper()
		fmt.Fprintln(in, script)
		return until(h.T, out, "-- done")
	}
	do("true") // it is up
	return do
}

// TestPastaFollowsHost: what changes on the host changes in the namespace, and a connection by an address that stays goes on.
func TestPastaFollowsHost(t *testing.T) {
	h := newOwnHost(t)
	server := self(t) + " " + probeWord
	h.begin(self(t), probeWord, "serve", "8000")
	do := h.shell(append([]string{"--map-guest-addr", "169.254.1.2", "-t", "18000:80"}, none[2:]...)...)
	do(server + " serve 80 >/dev/null &")
	expect(t, "at the beginning", do("ip addr; ip route; ip -6 route"), "192.0.2.10/24", "192.0.2.11/24", "2001:db8::10/64", "default via 192.0.2.1", "default via fe80::99")
	eventually(t, 5*time.Second, func() string {
		if out := do(server + " get http://169.254.1.2:8000/"); !strings.Contains(out, "you are 192.0.2.10") {
			return out
		}
		return ""
	})

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
		out := do("ip addr; ip route; ip -6 route")
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
	expect(t, "the address of the host that is mapped", do(server+" get http://169.254.1.2:8000/"), "you are 198.51.100.7")
	expect(t, "the gateway, which leads to the loopback", do(server+" get http://198.51.100.1:8000/"), "you are 127.0.0.1")
	expect(t, "a published port", h.get("http://198.51.100.7:18000/"), "you are 198.51.100.1")
}

// TestPastaSeveralNextHops: a default route by several gateways is one, by the first.
func TestPastaSeveralNextHops(t *testing.T) {
	h := newOwnHost(t)
	h.ip("route replace default nexthop via 192.0.2.1 nexthop via 192.0.2.2")
	do := h.shell(none...)
	expect(t, "inside", do("ip addr; ip route"), " h0", "192.0.2.10/24", "default via 192.0.2.1")
}

// TestPastaRefusals: the original's words and status.
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

// TestPastaConnectionsGoOn: an address is added and a route changed; what is connected stays so.
func TestPastaConnectionsGoOn(t *testing.T) {
	h := newOwnHost(t)
	server := self(t) + " " + probeWord
	h.begin(self(t), probeWord, "serve", "8000")
	do := h.shell(none...)
	eventually(t, 5*time.Second, func() string {
		if out := do(server + " get http://192.0.2.1:8000/"); !strings.Contains(out, "you are") {
			return out
		}
		return ""
	})
	do("mkfifo look; " + server + " hold 192.0.2.1:8000 '[fe80::99%h0]:8000' < look > looked 2>&1 & exec 9> look")
	do("i=0; while ! grep -q held looked && [ $i -lt 50 ]; do i=$((i+1)); sleep 0.1; done")
	h.ip("addr add 198.51.100.7/24 dev h0")
	h.ip("addr del 192.0.2.11/24 dev h0")
	h.ip("-6 addr add 2001:db8:2::10/64 dev h0 nodad")
	eventually(t, 10*time.Second, func() string {
		out := do("ip addr")
		if !strings.Contains(out, "198.51.100.7/24") || !strings.Contains(out, "2001:db8:2::10/64") || strings.Contains(out, "192.0.2.11") {
			return out
		}
		return ""
	})
	expect(t, "connections from before", do("echo >&9; while ! grep -q looked looked; do sleep 0.1; done; cat looked"), "192.0.2.1:8000: <nil>", "[fe80::99%h0]:8000: <nil>")
}

// TestPastaLoopbackOut: ports of the namespace's loopback lead to the host's, as they are named or as they are served.
func TestPastaLoopbackOut(t *testing.T) {
	need(t, "ss")
	h := newOwnHost(t)
	probe := self(t) + " " + probeWord
	h.begin(self(t), probeWord, "serve", "8000")
	eventually(t, 5*time.Second, func() string {
		if out := h.get("http://127.0.0.1:8000/"); !strings.Contains(out, "you are") {
			return out
		}
		return ""
	})
	t.Run("by number", func(t *testing.T) {
		h := ownHost{target{&user{T: t, home: h.home, runtime: h.runtime, env: h.env}, h.pid}}
		do := h.shell("-t", "none", "-u", "none", "-T", "80:8000,7000", "-U", "53:8000")
		expect(t, "TCP", do(probe+" get http://127.0.0.1:80/ 'http://[::1]:80/' http://127.0.0.9:80/"),
			"http://127.0.0.1:80/: you are 127.0.0.1", "http://[::1]:80/: you are [::1]", "http://127.0.0.9:80/: you are 127.0.0.1")
		expect(t, "UDP", do(probe+" ask 127.0.0.1:53 '[::1]:53'"), "hello, you are 127.0.0.1", "hello, you are [::1]")
		expect(t, "a lot of data", do(probe+" bulk http://127.0.0.1:80/bulk; "+probe+" bulk 'http://[::1]:80/bulk'"), "bulk 16777216 bytes, <nil>; 16777216 bytes, <nil>\nbulk 16777216 bytes, <nil>; 16777216 bytes, <nil>")
		expect(t, "a port that nobody serves", do(probe+" get http://127.0.0.1:7000/"), "reset")
		expect(t, "a port that was not named", do(probe+" get http://127.0.0.1:8000/"), "refused")
	})
	t.Run("auto", func(t *testing.T) {
		h := ownHost{target{&user{T: t, home: h.home, runtime: h.runtime, env: h.env}, h.pid}}
		do := h.shell()
		expect(t, "what is served", do(probe+" get http://127.0.0.1:8000/; "+probe+" ask 127.0.0.1:8000"), "you are 127.0.0.1", "hello, you are 127.0.0.1")
		// A server inside is published, and its port on the host not taken for one of the host's.
		do(probe + " serve 8001 >/dev/null & sleep 2.5")
		expect(t, "a server inside", h.get("http://192.0.2.10:8001/"), "you are")
		expect(t, "listeners inside", do("ss -Hltn"), "*:8001", "%lo:8000")
		if out := do("ss -Hltn"); strings.Contains(out, "%lo:8001") {
			t.Errorf("the server's own port is forwarded back:\n%s", out)
		}
	})
	t.Run("closed", func(t *testing.T) {
		h := ownHost{target{&user{T: t, home: h.home, runtime: h.runtime, env: h.env}, h.pid}}
		expect(t, "none", h.shell(none...)(probe+" get http://127.0.0.1:8000/"), "refused")
	})
}

// TestPastaLoopbackIn: with --host-lo-to-ns-lo a client on the host's loopback reaches a server on the namespace's.
func TestPastaLoopbackIn(t *testing.T) {
	h := newOwnHost(t)
	do := h.shell(append([]string{"--host-lo-to-ns-lo", "-t", "18000:80", "-u", "18000:80"}, none[4:]...)...)
	do(self(t) + " " + probeWord + " serve 80 >/dev/null &")
	eventually(t, 5*time.Second, func() string {
		if out := h.get("http://127.0.0.1:18000/"); !strings.Contains(out, "you are 127.0.0.1:") {
			return out
		}
		return ""
	})
	expect(t, "IPv6", h.get("http://[::1]:18000/"), "you are [::1]:")
	expect(t, "UDP", h.in(self(t), probeWord, "ask", "127.0.0.1:18000", "[::1]:18000"), "you are 127.0.0.1:", "you are [::1]:")
	expect(t, "by another address", h.get("http://192.0.2.10:18000/"), "you are 192.0.2.1:")
	expect(t, "a lot of data", h.in(self(t), probeWord, "bulk", "http://127.0.0.1:18000/bulk"), "bulk 16777216 bytes, <nil>; 16777216 bytes, <nil>")
}

// TestPastaOwnAddresses: a client on the host that comes by an address which the namespace has as well appears as the gateway,
// whichever of the addresses it is: from its own a kernel takes nothing that comes by the link.
func TestPastaOwnAddresses(t *testing.T) {
	for _, flags := range [][]string{nil, {"--no-splice"}} {
		h := newOwnHost(t)
		h.ip("addr add 198.51.100.7/24 dev h0")
		do := h.shell(append(append([]string{"-t", "18000:80", "-u", "18000:80"}, none[4:]...), flags...)...)
		do(self(t) + " " + probeWord + " serve 80 >/dev/null &")
		eventually(t, 5*time.Second, func() string {
			if out := h.get("http://192.0.2.10:18000/"); !strings.Contains(out, "you are 192.0.2.1:") {
				return out
			}
			return ""
		})
		expect(t, "the second address", h.get("http://198.51.100.7:18000/"), "you are 192.0.2.1:")
		for _, addr := range []string{"192.0.2.10:18000", "198.51.100.7:18000"} {
			expect(t, "UDP by "+addr, h.in(self(t), probeWord, "ask", addr), "hello, you are 192.0.2.1:")
		}
		expect(t, "IPv6", h.get("http://[2001:db8::10]:18000/"), "you are [fe80::99")
	}
}

// TestPastaOutlives: --no-netns-quit goes on when the path of the namespace is gone; without it pasta ends.
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
			time.Sleep(2500 * time.Millisecond) // more than it takes to notice
			text, err := os.ReadFile(pidFile)
			if err != nil || len(running("pasta")) == 0 {
				t.Errorf("it has ended, or %v", err)
			}
			h.run("kill", strings.TrimSpace(string(text)))
		}
		gone(t, "pasta")
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
	expect(t, "told nothing of names", run("-D", "192.0.2.53", "-S", "example.org"), "got 192.0.2.10/24 by 192.0.2.1 dns search name")
	expect(t, "told of names", run("-D", "192.0.2.53", "-S", "example.org", "--dhcp-dns", "--dhcp-search", "-H", "box"),
		"got 192.0.2.10/24 by 192.0.2.1 dns 192.0.2.53 search example.org name box")
	expect(t, "the forwarding address", run("--dhcp-dns", "--dns-forward", "169.254.1.1"), "dns 169.254.1.1 search")
	expect(t, "off", run("--no-dhcp"), "no lease")

	do := h.bareShell(none...)
	expect(t, "before the host moves", do(dhcp), "got 192.0.2.10/24 by 192.0.2.1")
	h.ip("addr add 198.51.100.7/25 dev h0")
	h.ip("addr del 192.0.2.10/24 dev h0")
	h.ip("addr flush dev h0 to 192.0.2.0/24")
	h.ip("route replace default via 198.51.100.1")
	eventually(t, 10*time.Second, func() string {
		if out := do(dhcp); !strings.Contains(out, "got 198.51.100.7/25 by 198.51.100.1") {
			return out
		}
		return ""
	})
}

// TestPastaFiles: what is said goes to a file of bounded size, what is on the link to another, and a signal ends it.
func TestPastaFiles(t *testing.T) {
	for _, signal := range []string{"TERM", "QUIT"} {
		g := newTarget(t)
		file := func(name string) string { return filepath.Join(g.home, name) }
		out := g.run(append([]string{filepath.Join(bins, "pasta"), "--config-net", "-d", "-l", file("log"), "--log-size", "4096", "-p", file("pcap"), "-P", file("pid")}, append(none[:len(none):len(none)], g.pid)...)...)
		if out != "" {
			t.Errorf("it said %q", out)
		}
		g.in("ip", "link")
		g.get("http://198.51.100.254:1/")
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
		gone(t, "pasta")
		eventually(t, 5*time.Second, func() string {
			if links := g.in("ip", "link"); strings.Contains(links, "lan0") {
				return links
			}
			return ""
		})
	}
}
