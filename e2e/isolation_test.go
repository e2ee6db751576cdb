package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

func echo(c *net.TCPConn) { guest.Echo(c) }

func TestScorecard01HostLoopbackTCP(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, reached := l.serve(l.Here, "127.0.0.1:0", echo)
		s := l.start()
		for _, host := range []string{gateway4, "host.docker.internal", topo.Here4.String()} {
			s.wantFirst("ECONNREFUSED", "connect", net.JoinHostPort(host, fmt.Sprint(srv.Port())))
		}
		if reached.count() != 0 {
			t.Error("the host's loopback was reached")
		}
	})
}

func TestScorecard02HostLoopbackUDP(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, reached := l.serveUDP(l.Here, "127.0.0.1:0")
		s := l.start()
		for _, host := range []string{gateway4, topo.Here4.String()} {
			if got := s.do("udp", net.JoinHostPort(host, fmt.Sprint(srv.Port())), "x", "500ms"); got != "ECONNREFUSED" && got != "TIMEOUT" {
				t.Errorf("udp to %s: %q", host, got)
			}
		}
		if reached.count() != 0 {
			t.Error("the host's loopback was reached")
		}
	})
}

func TestScorecard03LoopbackInsideIsItsOwn(t *testing.T) {
	l := newLab(t)
	srv, reached := l.serve(l.Here, "127.0.0.1:0", echo)
	s := l.start()
	s.wantFirst("ECONNREFUSED", "connect", srv)
	s.do("serve-tcp", srv)
	if got := s.do("exchange", srv, "own"); !strings.HasPrefix(got, "127.0.0.1:") || !strings.HasSuffix(got, " own") {
		t.Errorf("exchange with the loopback inside: %q", got)
	}
	if reached.count() != 0 {
		t.Error("the host's loopback was reached")
	}
}

// The host's listeners on every address, which a packet to loopback would find.
func TestScorecard04RawTCPToLoopback(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		srv, reached := l.serve(l.Here, "0.0.0.0:0", echo)
		s := l.start()
		for _, dst := range []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3"} {
			if got := s.do("raw-tcp", dst, srv.Port(), "200ms"); got == "synack" || got == "segment" {
				t.Errorf("a SYN to %s got %s", dst, got)
			}
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		// The same frame to an address that is open is answered: the test can fail.
		s.want("synack", "raw-tcp", topo.Here4, srv.Port(), "3s")
	})
}

func TestScorecard05RawUDPToLoopback(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		srv, reached := l.serveUDP(l.Here, "0.0.0.0:0")
		s := l.start()
		for _, dst := range []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3"} {
			if got := s.do("raw-udp", dst, srv.Port(), "200ms"); got == "answer" {
				t.Errorf("a datagram to %s was answered", dst)
			}
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		s.want("answer", "raw-udp", topo.Here4, srv.Port(), "3s")
	})
}

func TestScorecard06RawUDPToLoopbackOfIPv6(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		if !l.IPv6 {
			t.Skip("THIS KERNEL HAS NO IPv6")
		}
		srv, reached := l.serveUDP(l.Here, "[::]:0")
		s := l.start()
		for _, dst := range []string{"::", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"} {
			if got := s.do("raw-udp", dst, srv.Port(), "200ms"); got == "answer" {
				t.Errorf("a datagram to %s was answered", dst)
			}
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		s.want("answer", "raw-udp", topo.Here6, srv.Port(), "3s")
	})
}

func TestScorecard07MulticastAndReservedAreCounted(t *testing.T) {
	l := newLab(t)
	s := l.start()
	before := s.counters()
	for _, dst := range []string{"255.255.255.255", "224.0.0.251", "239.1.2.3", "240.0.0.1"} {
		if got := s.do("raw-udp", dst, 5353, "100ms"); got == "answer" {
			t.Errorf("a datagram to %s was answered", dst)
		}
	}
	if got := s.do("raw-tcp", "240.0.0.1", 80, "100ms"); got == "synack" {
		t.Error("a SYN to 240.0.0.1 was answered")
	}
	after := s.counters()
	for _, reason := range []string{"broadcast", "multicast", "reserved"} {
		grew := false
		for name, n := range after {
			grew = grew || strings.Contains(name, reason) && n > before[name]
		}
		if !grew {
			t.Errorf("no counter of %s drops grew: %v", reason, after)
		}
	}
}

func TestScorecard08MetadataService(t *testing.T) {
	l := newLab(t)
	metadata := netip.MustParseAddr("169.254.169.254")
	if err := l.There.Do(func() error {
		link, err := netlink.LinkByName(topo.Link)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: metadata.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}); err != nil {
		t.Fatal(err)
	}
	_, reached := l.serve(l.There, at(metadata, 80), echo)
	l.connectTo(l.Here, at(metadata, 80)).Close() // the host can
	eventually(t, time.Second, func() string {
		if reached.count() != 1 {
			return "the server does not count"
		}
		return ""
	})
	s := l.start()
	if got := s.do("connect", at(metadata, 80), "1s"); strings.HasPrefix(got, "connected") || reached.count() != 1 {
		t.Errorf("got %q", got)
	}
}

func TestScorecard09NoStrayDescriptors(t *testing.T) {
	l := newLab(t)
	for _, network := range []string{"bridge", "host", "none"} {
		cmd := l.command("rootless-run", append([]string{"--network", network, "--"}, op("fds")...)...)
		secret, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = []*os.File{secret, secret, secret}
		r := l.finish(cmd)
		secret.Close()
		if r.code != 0 || r.stdout != "0 1 2\n" {
			t.Errorf("%s: exit %d, open: %q; stderr:\n%s", network, r.code, r.stdout, r.stderr)
		}
	}
}

// TestScorecard12Confinement: of the supervisor, whose fields of /proc/PID/status hold for each of its threads.
func TestScorecard12Confinement(t *testing.T) {
	l := newLab(t)
	s := l.start()
	s.do("serve-tcp", ":80")
	pid := s.cmd.Process.Pid
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread ended
		}
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapAmb:\t0000000000000000"} {
			if !strings.Contains(string(text), want+"\n") {
				t.Errorf("%s: no %q", path, want)
			}
		}
	}
	// The files of a process that is not dumpable are not its user's (proc(5)).
	info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) == os.Getuid() {
		t.Error("the supervisor is dumpable")
	}
}

func TestScorecard13SocketsOfTheSupervisor(t *testing.T) {
	l := newLab(t)
	s := l.start()
	text, err := l.Here.Read("/proc/thread-self/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, line := range strings.Split(string(text), "\n")[1:] {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) < 8 || !strings.HasPrefix(f[7], "@") && !strings.HasPrefix(f[7], l.runtime) {
			continue
		}
		found++
		if got := s.do("connect-unix", f[7]); got == "connected" {
			t.Errorf("%s can be connected to from inside", f[7])
		}
	}
	if found == 0 {
		t.Errorf("no socket of the supervisor found in:\n%s", text)
	}
}

func TestScorecard14TrueClientAddress(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start("-p", "8080:80", "-p", "8081:81/udp")
		s.do("serve-tcp", ":80")
		s.do("serve-udp", ":81")
		for _, f := range l.families() {
			for _, client := range []netip.Addr{f.there, f.there2} {
				d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0))}
				c, err := l.There.DialWith(d, "tcp", at(f.here, 8080))
				if err != nil {
					t.Errorf("from %v: %v", client, err)
					continue
				}
				got, err := guest.Exchange(c, "hello")
				if want := c.LocalAddr().String() + " hello"; err != nil || got != want {
					t.Errorf("TCP: got %q, %v; want %q", got, err, want)
				}
				c.Close()
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(client, 0))
				u, err := l.There.DialWith(d, "udp", at(f.here, 8081))
				if err != nil {
					t.Errorf("from %v: %v", client, err)
					continue
				}
				got, err = guest.AskUDP(u, "hello", 2*time.Second)
				if want := u.LocalAddr().String() + " hello"; err != nil || got != want {
					t.Errorf("UDP: got %q, %v; want %q", got, err, want)
				}
				u.Close()
			}
		}
	})
}

func TestScorecard15PublishedOnLoopbackOnly(t *testing.T) {
	l := newLab(t)
	s := l.start("-p", "127.0.0.1:8080:80")
	s.do("serve-tcp", ":80")
	if c, err := l.There.Dial("tcp", at(topo.Here4, 8080), time.Second); guest.Errno(orNil(err)) != "ECONNREFUSED" {
		t.Errorf("from outside: %v, want refused", err)
		if c != nil {
			c.Close()
		}
	}
	if got, err := guest.Exchange(l.connectTo(l.Here, "127.0.0.1:8080"), "hello"); err != nil || !strings.HasSuffix(got, " hello") {
		t.Errorf("from the host's loopback: %q, %v", got, err)
	}
}

// orNil makes an error of a success, for guest.Errno.
func orNil(err error) error {
	if err == nil {
		return fmt.Errorf("connected")
	}
	return err
}

func TestScorecard16Modes(t *testing.T) {
	l := newLab(t)
	t.Run("none", func(t *testing.T) {
		l.T = t
		r := l.once([]string{"--network", "none"}, op("links")...)
		if !strings.HasPrefix(r.stdout, "lo:up:") || strings.Contains(strings.TrimSpace(r.stdout), " ") {
			t.Errorf("links %q; stderr:\n%s", r.stdout, r.stderr)
		}
	})
	t.Run("container", func(t *testing.T) {
		l.T = t
		s := l.start()
		want := s.do("netns")
		r := l.once([]string{"--network", "container:" + s.name}, op("netns")...)
		if r.code != 0 || strings.TrimSpace(r.stdout) != want {
			t.Errorf("exit %d, namespace %q, want %q; stderr:\n%s", r.code, r.stdout, want, r.stderr)
		}
	})
	t.Run("host", func(t *testing.T) {
		l.T = t
		var want string
		if err := l.Here.Do(func() (err error) {
			want, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		r := l.once([]string{"--network", "host", "-p", "8080:80"}, op("netns")...)
		if r.code != 0 || "net:["+strings.TrimSpace(r.stdout)+"]" != want {
			t.Errorf("exit %d, namespace %q, want %q", r.code, r.stdout, want)
		}
		if !strings.Contains(r.stderr, "WARNING: Published ports are discarded when using host network mode") {
			t.Errorf("no warning on stderr: %q", r.stderr)
		}
	})
	l.T = t
}

// malformed sends broken frames from inside and then expects the sandbox to work, and not to have grown.
func malformed(t *testing.T, frames ...string) {
	const grown = 5 << 20
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
		s := l.start()
		s.want("reply 56", "ping", gateway4)
		words := []any{frames[0]}
		for _, w := range frames[1:] {
			words = append(words, w)
		}
		s.do(words...)
		before := s.rss()
		for range 20 {
			s.do(words...)
		}
		s.want("reply 56", "ping", gateway4)
		if got := s.do("exchange", srv, "hello"); !strings.HasSuffix(got, " hello") {
			t.Errorf("afterwards, exchange: %q", got)
		}
		if after := s.rss(); after > before+grown {
			t.Errorf("resident memory grew from %d to %d", before, after)
		}
	})
}

func TestScorecard17ShortFrames(t *testing.T) { malformed(t, "raw-short") }

func TestScorecard18BadHeaders(t *testing.T) { malformed(t, "raw-bad", topo.There4.String(), "9") }

func TestScorecard20UrgentSweep(t *testing.T) { malformed(t, "raw-urg", topo.There4.String(), "9") }

// TestLinkForcedWithoutPermission: where /dev/net/tun is closed, a forced TAP says what to do and auto takes packet.
func TestLinkForcedWithoutPermission(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		f.Close()
		t.Skip("/dev/net/tun is open here; make test TUN_MODE=0600 runs this")
	}
	l := newLab(t)
	for _, kind := range []string{"tap", "tap-plain"} {
		r := l.once([]string{"--link", kind}, "/bin/true")
		if r.code != 125 || !strings.Contains(r.stderr, "rootless-net doctor") {
			t.Errorf("--link %s: exit %d, %q", kind, r.code, r.stderr)
		}
	}
	s := l.start()
	s.want("reply 56", "ping", topo.There4)
}

// TestLinkChosen: inspect names the link that was asked for.
func TestLinkChosen(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start()
		var list []map[string]any
		if err := json.Unmarshal([]byte(s.manage("inspect", s.name)), &list); err != nil || len(list) != 1 {
			t.Fatalf("inspect: %v, %v", list, err)
		}
		if text := fmt.Sprint(list[0]); !strings.Contains(text, l.flags[1]) {
			t.Errorf("inspect does not name the link %s: %s", l.flags[1], text)
		}
	})
}
