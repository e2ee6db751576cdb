package callers

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/procnet"
	"rootlessnet/internal/procstat"
	"rootlessnet/internal/race"
)

// configured expects that what the namespace's addresses and routes are contains words, and none of others, within some seconds.
func (a *agent) configured(words []string, others ...string) {
	a.Helper()
	eventually(a.T, 10*time.Second, func() string {
		out := a.sh("ip addr; ip route; ip -6 route")
		for _, w := range words {
			if !strings.Contains(out, w) {
				return "no " + w + " in\n" + out
			}
		}
		for _, w := range others {
			if strings.Contains(out, w) {
				return w + " is still there:\n" + out
			}
		}
		return ""
	})
}

// TestPastaVPN: a VPN takes the default route, and goes again. The address of the other interface stays inside as long as the host
// has it, with the connections by it, and new flows leave by the VPN's address.
func TestPastaVPN(t *testing.T) {
	for _, flags := range [][]string{nil, {"--no-splice"}} {
		h := newOwnHost(t)
		h.serve(8000)
		begin(h.user, guest.ServeTCP{Server: guest.Echo, Port: 8001}, h.program()...)
		a := h.pasta(append(append([]string{"-t", "18000:80", "-u", "18000:80"}, none[4:]...), flags...)...)
		do(a, guest.ServeHTTP{Port: 80})
		if got := do(a, guest.Hold{To: guest.Target{Host: "192.0.2.1", Port: 8001}, Count: 1}); got != (guest.Held{Count: 1}) {
			t.Fatalf("%v: %+v", flags, got)
		}
		for _, words := range []string{"link add vpn0 type veth peer name vpn1", "link set vpn1 up", "link set vpn0 up", "addr add 10.8.0.2/32 dev vpn0", "route replace default dev vpn0"} {
			h.ip(words)
		}
		a.configured([]string{"192.0.2.10/24", "10.8.0.2/32", "deprecated", "default dev h0 scope link src 10.8.0.2"})
		if got := do(a, guest.EchoHeld{}); got != (guest.Held{Count: 1}) {
			t.Errorf("%v: the connection from before: %+v", flags, got)
		}
		wantUDPSeen(t, "UDP to the host's address", h.ask("192.0.2.10", 18000), "")
		wantSeen(t, "a published port by the address from before", h.get("192.0.2.10", 18000), "")
		wantSeen(t, "out", a.get("http://169.254.2.2:8000/"), "127.0.0.1")
		wantUDPSeen(t, "UDP out", a.ask("169.254.2.2", 8000), "127.0.0.1")

		h.ip("route replace default via 192.0.2.1 dev h0")
		h.ip("link del vpn0")
		a.configured([]string{"192.0.2.10/24", "default via 192.0.2.1 dev h0"}, "10.8.0.2", "deprecated")
		if got := do(a, guest.EchoHeld{}); got != (guest.Held{Count: 1}) {
			t.Errorf("%v: the connection, without the VPN: %+v", flags, got)
		}
	}
}

// TestPastaDeprecated: an IPv6 address that loses its preferred lifetime, as privacy addresses do every day, stays inside without
// one, and so do flows by it. At the start it is copied as well.
func TestPastaDeprecated(t *testing.T) {
	h := newOwnHost(t)
	h.serve(8000)
	h.ip("-6 addr add 2001:db8::77/64 dev h0 nodad preferred_lft 0")
	begin(h.user, guest.ServeTCP{Server: guest.Echo, Port: 8001}, h.program()...)
	a := h.pasta(none...)
	a.configured([]string{"2001:db8::77/64 scope global nodad deprecated", "2001:db8::10/64"}, "2001:db8::10/64 scope global nodad deprecated")
	if got := do(a, guest.Hold{To: guest.Target{Host: "fe80::99%h0", Port: 8001}, Count: 1}); got != (guest.Held{Count: 1}) {
		t.Fatalf("%+v", got)
	}
	h.ip("-6 addr add 2001:db8::11/64 dev h0 nodad")
	h.ip("-6 addr change 2001:db8::10/64 dev h0 preferred_lft 0")
	a.configured([]string{"2001:db8::10/64 scope global nodad deprecated", "2001:db8::11/64"}, "2001:db8::11/64 scope global nodad deprecated")
	if got := do(a, guest.EchoHeld{}); got != (guest.Held{Count: 1}) {
		t.Errorf("the connection from before: %+v", got)
	}
	h.ip("-6 addr change 2001:db8::10/64 dev h0 preferred_lft forever valid_lft forever")
	a.configured([]string{"2001:db8::10/64"}, "2001:db8::10/64 scope global nodad deprecated")
}

// TestPastaSourceNotCopied: the default route is there without the source that the namespace does not have.
func TestPastaSourceNotCopied(t *testing.T) {
	for _, c := range []struct {
		name string
		host []string // what the host has besides
		args []string
	}{
		{"an address on lo", []string{"addr add 203.0.113.5/32 dev lo", "route replace default via 192.0.2.1 src 203.0.113.5",
			"-6 addr add 2001:db8:9::5/128 dev lo nodad", "-6 route replace default via fe80::99 dev h0 src 2001:db8:9::5"}, nil},
		{"--no-copy-addrs", []string{"route replace default via 192.0.2.1 src 192.0.2.11"}, []string{"--no-copy-addrs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newOwnHost(t)
			h.T = t
			for _, words := range c.host {
				h.ip(words)
			}
			h.serve(8000)
			a := h.pasta(append(append([]string{}, none...), c.args...)...)
			a.configured([]string{"default via 192.0.2.1 dev h0", "default via fe80::99 dev h0"}, " src 203.0.113.5", " src 192.0.2.11", "src 2001:db8:9::5")
			wantSeen(t, "out", a.get("http://192.0.2.1:8000/"), "127.0.0.1")
		})
	}
}

// TestPastaNetworkLater: the host has no network at the start. When it gets one, the namespace has its routes.
func TestPastaNetworkLater(t *testing.T) {
	h := newOwnHost(t)
	h.serve(8000)
	for _, words := range []string{"route del default", "-6 route del default via fe80::99 dev h0"} {
		h.ip(words)
	}
	a := h.pasta(append([]string{"-I", "h0"}, none...)...)
	for _, words := range []string{"route add default via 192.0.2.1 metric 100", "-6 route add default via fe80::99 dev h0"} { // with the metric that the kernel chooses
		h.ip(words)
	}
	a.configured([]string{"default via 192.0.2.1 dev h0 metric 100", "default via fe80::99 dev h0 metric 1024"}, "default dev h0")
	h.ip("-6 route del default via fe80::99 dev h0")
	h.ip("-6 route add default via fe80::99 dev h0 metric 512")
	a.configured([]string{"default via fe80::99 dev h0 metric 512"}, "metric 1024")
	wantSeen(t, "by IPv6", a.get("http://[fe80::99%25h0]:8000/"), "")
}

// TestPastaSignals: a signal ends pasta and the command, whatever the command does with it, and no process is left.
func TestPastaSignals(t *testing.T) {
	need(t, "busybox")
	mark := fmt.Sprintf("4711.%d", os.Getpid()) // an argument of sleep that no other process has
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		script string
		code   int // -1: pasta itself was killed
	}{
		{"default action", syscall.SIGTERM, "exec sleep " + mark, 128 + 15},
		{"default action, SIGINT", syscall.SIGINT, "exec sleep " + mark, 128 + 2},
		{"default action, SIGHUP", syscall.SIGHUP, "exec sleep " + mark, 128 + 1},
		{"ignored", syscall.SIGTERM, `trap "" TERM; sleep ` + mark + ` & wait`, 128 + 15},
		{"handled", syscall.SIGTERM, `trap "exit 7" TERM; sleep ` + mark + ` & wait`, 7},
		{"killed", syscall.SIGKILL, "sleep " + mark + " & wait", -1},
	} {
		g := newTarget(t)
		cmd := g.command(append(append([]string{filepath.Join(bins, "pasta"), "--config-net"}, none...), "sh", "-c", c.script)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() string {
			if exec.Command("pgrep", "-f", "^sleep "+mark).Run() != nil {
				return "the command does not run"
			}
			return ""
		})
		begun := time.Now()
		_ = cmd.Process.Signal(c.signal)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != c.code || time.Since(begun) > 5*time.Second {
			t.Errorf("%s: exit %d after %v; want %d", c.name, code, time.Since(begun), c.code)
		}
		eventually(t, 5*time.Second, func() string {
			if out, err := exec.Command("pgrep", "-af", "^sleep "+mark).Output(); err == nil {
				return c.name + ": left behind: " + string(out)
			}
			return ""
		})
	}
}

// TestPastaManyListeners: hundreds of servers inside are forwarded at little cost in processor time.
func TestPastaManyListeners(t *testing.T) {
	const first, n = 20000, 790
	h := newOwnHost(t)
	pidFile := filepath.Join(h.home, "pid")
	a := h.pasta(append([]string{"-P", pidFile, "-t", "auto"}, none[2:]...)...)
	for i := range n - 1 {
		do(a, guest.ServeTCP{Server: guest.Echo, Addr: netip.IPv4Unspecified(), Port: uint16(first + i)})
	}
	do(a, guest.ServeHTTP{Port: first + n - 1})
	forwarded := func(want int) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			open := 0
			for _, l := range procnet.Listeners("/proc/"+h.pid+"/net", "tcp") {
				if l.Addr().Is4() && l.Port() >= first && l.Port() < first+n {
					open++
				}
			}
			if open != want {
				return strconv.Itoa(open) + " ports are open, of " + strconv.Itoa(want)
			}
			return ""
		})
	}
	forwarded(n)
	wantSeen(t, "the last of the servers", h.get("192.0.2.10", first+n-1), "")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := procstat.Read(pid)
	if err != nil {
		t.Fatal(err)
	}
	// One call per port takes about a second of it, together they take a twentieth.
	if stat.CPU > 500*time.Millisecond && !race.Enabled {
		t.Errorf("pasta used %v of processor time", stat.CPU)
	}
}
