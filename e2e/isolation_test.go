package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/nettest/topo"
)

// sendSYN sends a SYN as a frame, around the kernel inside.
func sendSYN(s *sandbox, dst string, port uint16, wait time.Duration) guest.RawAnswer {
	return do(s, guest.SendSYN{To: at(netip.MustParseAddr(dst), port), Wait: wait})
}

// sendDatagram sends a datagram as a frame, around the kernel inside.
func sendDatagram(s *sandbox, dst string, port uint16, wait time.Duration) guest.RawAnswer {
	return do(s, guest.SendDatagram{To: at(netip.MustParseAddr(dst), port), Wait: wait})
}

func TestScorecard01HostLoopbackTCP(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, reached := l.serve(l.Here, at(loopback4, 0), guest.Echo)
		s := l.start(asRoot)
		for _, host := range []string{gateway4.String(), "host.docker.internal", topo.Here4.String()} {
			s.wantConnectTo(guest.Refused, guest.Target{Host: host, Port: srv.Port()}, 0)
		}
		if reached.count() != 0 {
			t.Error("the host's loopback was reached")
		}
	})
}

func TestScorecard02HostLoopbackUDP(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, reached := l.serveUDP(l.Here, at(loopback4, 0))
		s := l.start(asRoot)
		for _, host := range []netip.Addr{gateway4, topo.Here4} {
			if got := s.askUDP(at(host, srv.Port()), "x", 500*time.Millisecond); got.Outcome != guest.Refused && got.Outcome != guest.TimedOut {
				t.Errorf("a datagram to %v: %+v", host, got)
			}
		}
		if reached.count() != 0 {
			t.Error("the host's loopback was reached")
		}
	})
}

func TestScorecard03LoopbackInsideIsItsOwn(t *testing.T) {
	l := newLab(t)
	srv, reached := l.serve(l.Here, at(loopback4, 0), guest.Echo)
	s := l.start(asRoot)
	s.wantConnect(guest.Refused, srv)
	do(s, guest.ServeTCP{Server: guest.Echo, Addr: srv.Addr(), Port: srv.Port()})
	s.wantEchoFrom(loopback4, srv, "with the loopback inside")
	if reached.count() != 0 {
		t.Error("the host's loopback was reached")
	}
}

// TestScorecard04RawTCPToLoopback: the host's server listens on every address, so a packet to loopback would reach it.
func TestScorecard04RawTCPToLoopback(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		srv, reached := l.serve(l.Here, at(any4, 0), guest.Echo)
		s := l.start(asRoot)
		for _, dst := range []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3"} {
			if got := sendSYN(s, dst, srv.Port(), 200*time.Millisecond); got == guest.AnsweredSYNACK || got == guest.AnsweredSegment {
				t.Errorf("a SYN to %s got %s", dst, got)
			}
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		// The same frame to an address that is open is answered: the test can fail.
		want(s, guest.AnsweredSYNACK, guest.SendSYN{To: at(topo.Here4, srv.Port()), Wait: 3 * time.Second})
	})
}

func TestScorecard05RawUDPToLoopback(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		srv, reached := l.serveUDP(l.Here, at(any4, 0))
		s := l.start(asRoot)
		for _, dst := range []string{"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3"} {
			if got := sendDatagram(s, dst, srv.Port(), 200*time.Millisecond); got == guest.AnsweredDatagram {
				t.Errorf("a datagram to %s was answered", dst)
			}
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		want(s, guest.AnsweredDatagram, guest.SendDatagram{To: at(topo.Here4, srv.Port()), Wait: 3 * time.Second})
	})
}

func TestScorecard06RawUDPToLoopbackOfIPv6(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		if !l.IPv6 {
			skip.Missing(t, "this kernel has no IPv6")
		}
		srv, reached := l.serveUDP(l.Here, at(any6, 0))
		s := l.start(asRoot)
		for _, dst := range []string{"::", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"} {
			if got := sendDatagram(s, dst, srv.Port(), 200*time.Millisecond); got == guest.AnsweredDatagram {
				t.Errorf("a datagram to %s was answered", dst)
			}
		}
		if reached.count() != 0 {
			t.Error("the host was reached")
		}
		want(s, guest.AnsweredDatagram, guest.SendDatagram{To: at(topo.Here6, srv.Port()), Wait: 3 * time.Second})
	})
}

func TestScorecard07MulticastAndReservedAreCounted(t *testing.T) {
	l := newLab(t)
	s := l.start(asRoot)
	before := s.counters().values
	for _, dst := range []string{"255.255.255.255", "224.0.0.1", "224.0.0.5", "240.0.0.1"} {
		if got := sendDatagram(s, dst, 5353, 100*time.Millisecond); got == guest.AnsweredDatagram {
			t.Errorf("a datagram to %s was answered", dst)
		}
	}
	if got := sendSYN(s, "240.0.0.1", 80, 100*time.Millisecond); got == guest.AnsweredSYNACK {
		t.Error("a SYN to 240.0.0.1 was answered")
	}
	after := s.counters().values
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
	_, reached := l.serve(l.There, at(metadata, 80), guest.Echo)
	l.connectTo(l.Here, at(metadata, 80)).Close() // the host can
	eventually(t, time.Second, func() string {
		if reached.count() != 1 {
			return "the server has not counted the host's connection"
		}
		return ""
	})
	s := l.start(asRoot)
	if got := do(s, guest.Connect{To: guest.To(at(metadata, 80)), Timeout: time.Second}); got.Outcome == guest.OK || reached.count() != 1 {
		t.Errorf("connect: %v; the metadata service was reached %d times, want once by the host", got.Outcome, reached.count())
	}
}

func TestScorecard09DescriptorsOfTheCommand(t *testing.T) {
	l := newLab(t)
	for _, network := range []string{"bridge", "host", "none"} {
		cmd := l.command("rootless-run", append([]string{"--network", network, "--"}, program(guest.ListDescriptors{})...)...)
		secret, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = []*os.File{secret, secret, secret}
		open, r := decodeOnce(l, guest.ListDescriptors{}, l.finish(cmd))
		secret.Close()
		if r.code != 0 || !slices.Equal(open, []int{0, 1, 2}) {
			t.Errorf("%s: exit %d, open: %v; stderr:\n%s", network, r.code, open, r.stderr)
		}
	}
}

// TestScorecard12Confinement: every thread of the supervisor is confined, and the supervisor is not dumpable.
func TestScorecard12Confinement(t *testing.T) {
	l := newLab(t)
	s := l.start(asRoot)
	s.listenTCP(guest.Echo, 80)
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
	s := l.start(asRoot)
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
		if got := do(s, guest.ConnectUnix{Path: f[7]}); got == guest.OK {
			t.Errorf("%s can be connected to from inside", f[7])
		}
	}
	if found == 0 {
		t.Errorf("no socket of the supervisor found in:\n%s", text)
	}
}

func TestScorecard14TrueClientAddress(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start(asRoot, "-p", "8080:80", "-p", "8081:81/udp")
		s.listenTCP(guest.Echo, 80)
		s.listenUDP(81)
		for _, f := range l.families() {
			for _, client := range []netip.Addr{f.there, f.there2} {
				d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(at(client, 0))}
				c, err := l.There.DialWith(d, "tcp", at(f.here, 8080).String())
				if err != nil {
					t.Errorf("from %v: %v", client, err)
					continue
				}
				l.wantClientSeenOn(c)
				d.LocalAddr = net.UDPAddrFromAddrPort(at(client, 0))
				u, err := l.There.DialWith(d, "udp", at(f.here, 8081).String())
				if err != nil {
					t.Errorf("from %v: %v", client, err)
					continue
				}
				l.wantUDPClientSeenOn(u)
			}
		}
	})
}

func TestScorecard15PublishedOnLoopbackOnly(t *testing.T) {
	l := newLab(t)
	s := l.start(asRoot, "-p", "127.0.0.1:8080:80")
	s.listenTCP(guest.Echo, 80)
	if _, err := l.dial(l.There, at(topo.Here4, 8080)); guest.OutcomeOf(err) != guest.Refused {
		t.Errorf("from outside: %v, want refused", err)
	}
	l.wantAnswer(l.Here, at(loopback4, 8080), "from the host's loopback")
}

func TestScorecard16Modes(t *testing.T) {
	l := newLab(t)
	t.Run("none", func(t *testing.T) {
		l.T = t
		links, r := once(l, guest.ListLinks{}, "--network", "none")
		if r.code != 0 || len(links) != 1 || links[0].Name != "lo" || !links[0].Up {
			t.Errorf("exit %d, links %+v; stderr:\n%s", r.code, links, r.stderr)
		}
	})
	t.Run("container", func(t *testing.T) {
		l.T = t
		s := l.start(asRoot)
		want := do(s, guest.ReadNetNS{})
		got, r := once(l, guest.ReadNetNS{}, "--network", "container:"+s.name)
		if r.code != 0 || got != want {
			t.Errorf("exit %d, namespace %q, want %q; stderr:\n%s", r.code, got, want, r.stderr)
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
		got, r := once(l, guest.ReadNetNS{}, asRoot, "--network", "host", "-p", "8080:80")
		if r.code != 0 || got != want {
			t.Errorf("exit %d, namespace %q, want %q", r.code, got, want)
		}
		if !strings.Contains(r.stderr, "WARNING: Published ports are discarded when using host network mode") {
			t.Errorf("no warning on stderr: %q", r.stderr)
		}
	})
	l.T = t
}

// malformed sends broken frames from inside and then expects that the sandbox works and that its memory has not grown.
func malformed(t *testing.T, frames guest.Operation[int]) {
	const grown = 5 << 20
	onEveryLink(t, func(t *testing.T, l *lab) {
		srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
		s := l.start(asRoot)
		s.wantPong(gateway4)
		do(s, frames)
		before := s.rss()
		for range 20 {
			do(s, frames)
		}
		s.wantPong(gateway4)
		s.wantEcho(srv, "afterwards, exchange")
		if after := s.rss(); after > before+grown {
			t.Errorf("resident memory grew from %d to %d", before, after)
		}
	})
}

func TestScorecard17ShortFrames(t *testing.T) { malformed(t, guest.SendShortFrames{}) }

func TestScorecard18BadHeaders(t *testing.T) {
	malformed(t, guest.SendBadHeaders{To: at(topo.There4, 9)})
}

func TestScorecard20UrgentSweep(t *testing.T) {
	malformed(t, guest.SendUrgentFlags{To: at(topo.There4, 9)})
}

// TestLinkForcedWithoutPermission: where users may not open /dev/net/tun, the error of a forced TAP names the
// doctor, and the link "auto" is the packet link.
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
	s := l.start(asRoot)
	s.wantPong(topo.There4)
}

// TestLinkChosen: inspect names the link that was asked for.
func TestLinkChosen(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start(asRoot)
		var list []map[string]any
		if err := json.Unmarshal([]byte(s.manage("inspect", s.name)), &list); err != nil || len(list) != 1 {
			t.Fatalf("inspect: %v, %v", list, err)
		}
		if text := fmt.Sprint(list[0]); !strings.Contains(text, l.flags[1]) {
			t.Errorf("inspect does not name the link %s: %s", l.flags[1], text)
		}
	})
}
