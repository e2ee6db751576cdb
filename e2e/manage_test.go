package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// serveDNS runs a DNS server in "there" that knows example.test. and large.test.
func (l *lab) serveDNS() {
	l.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		q := r.Question[0]
		header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 5}
		switch {
		case q.Name == "example.test." && q.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: net.IPv4(192, 0, 2, 80)})
		case q.Name == "large.test." && q.Qtype == dns.TypeTXT:
			for i := range 60 {
				m.Answer = append(m.Answer, &dns.TXT{Hdr: header, Txt: []string{fmt.Sprintf("%064d", i)}})
			}
			if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
				m.Truncate(dns.MinMsgSize)
			}
		case q.Name != "example.test.":
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	packets, err := l.There.ListenPacket("udp", at(topo.There4, 53).String())
	if err != nil {
		l.Fatal(err)
	}
	listener, err := l.There.Listen("tcp", at(topo.There4, 53).String())
	if err != nil {
		l.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		go func() { _ = s.ActivateAndServe() }()
		l.Cleanup(func() { _ = s.ShutdownContext(context.Background()) })
	}
}

func TestDNS(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		l.serveDNS()
		s := l.start("--add-host", "db.test:192.0.2.5")
		text := do(s, guest.ReadFile{Path: "/etc/resolv.conf"}).Text
		_, address, _ := strings.Cut(text, "nameserver ")
		address, _, _ = strings.Cut(address, "\n")
		server, err := netip.ParseAddr(address)
		if err != nil || !strings.HasPrefix(address, "10.0.2.") {
			t.Fatalf("resolv.conf inside: %s", text)
		}
		for _, network := range []string{"udp", "tcp"} {
			wantAnswer := func(rcode string, name string, kind uint16, data ...string) {
				t.Helper()
				got := do(s, guest.QueryDNS{Server: server, Name: name, Type: kind, Network: network})
				if got.Outcome != guest.OK || got.Rcode != rcode || !slices.Equal(got.Data, data) {
					t.Errorf("%s %s over %s: %v; want %s %v", name, dns.TypeToString[kind], network, got, rcode, data)
				}
			}
			wantAnswer("NOERROR", "example.test", dns.TypeA, "192.0.2.80")
			wantAnswer("NOERROR", "example.test", dns.TypeAAAA)
			wantAnswer("NXDOMAIN", "missing.test", dns.TypeA)
			wantAnswer("NOERROR", "db.test", dns.TypeA, "192.0.2.5")
			wantAnswer("NOERROR", "host.docker.internal", dns.TypeA, gateway4.String())
			wantAnswer("NOERROR", "host.docker.internal", dns.TypeMX)
		}
		got := do(s, guest.QueryDNS{Server: server, Name: "large.test", Type: dns.TypeTXT, Network: "tcp"}).String()
		if strings.Count(got, fmt.Sprintf("%064d", 7)) != 1 || !strings.Contains(got, fmt.Sprintf("%064d", 59)) {
			t.Errorf("a large answer by TCP: %.100q", got)
		}
	})
}

func TestFilesInside(t *testing.T) {
	l := newLab(t)
	s := l.start("--hostname", "shell.test", "--dns", "192.0.2.53", "--dns-search", "corp.test", "--dns-opt", "ndots:3",
		"--add-host", "db.test:192.0.2.5", "--mac-address", "02:00:00:00:00:07", "--mtu", "1400", "--ip", "10.0.2.42")
	want(s, "shell.test", guest.ReadHostname{})
	for file, wants := range map[string][]string{
		"/etc/resolv.conf":            {"search corp.test", "ndots:3"},
		"/etc/hosts":                  {"127.0.0.1", "192.0.2.5", "db.test", "10.0.2.42", "shell.test", "host.docker.internal"},
		"/sys/class/net/eth0/address": {"02:00:00:00:00:07"},
	} {
		got := do(s, guest.ReadFile{Path: file}).Text
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s has no %q: %s", file, want, got)
			}
		}
	}
	for _, want := range []guest.NetLink{{Name: "lo", Up: true}, {Name: "eth0", Up: true, MTU: 1400}} {
		links := do(s, guest.ListLinks{})
		if !slices.ContainsFunc(links, func(l guest.NetLink) bool {
			return l.Name == want.Name && l.Up && (want.MTU == 0 || l.MTU == want.MTU)
		}) {
			t.Errorf("links: %+v; want %+v", links, want)
		}
	}
}

// wantLease expects the lease of the default network.
func (s *sandbox) wantLease(name string) {
	s.Helper()
	got := do(s, guest.RequestLease{Interface: name})
	if network := netip.PrefixFrom(guest4, 24); got.Outcome != guest.OK || got.Address != network || got.Router != gateway4 || !network.Contains(got.DNS) {
		s.Errorf("lease: %+v", got)
	}
}

func TestDHCP(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start(asRoot)
		s.wantLease("eth0")
	})
}

func TestManage(t *testing.T) {
	l := newLab(t)
	s := l.start("-p", "8080:80")
	s.listenTCP(guest.Echo, 80)
	if got := l.manage("ps"); !strings.Contains(got, s.name) {
		t.Errorf("ps does not list %s:\n%s", s.name, got)
	}
	var list []struct {
		Name       string
		Containers map[string]struct{ IPv4Address string }
	}
	if err := json.Unmarshal([]byte(l.manage("inspect", s.name)), &list); err != nil || len(list) != 1 || len(list[0].Containers) != 1 {
		t.Fatalf("inspect: %+v, %v", list, err)
	}
	for _, c := range list[0].Containers {
		if c.IPv4Address != guest4.String()+"/24" {
			t.Errorf("inspect names the address %q", c.IPv4Address)
		}
	}
	kept := l.connectTo(l.There, at(topo.Here4, 8080))
	l.manage("port", "add", s.name, "8081:80")
	l.wantAnswer(l.There, at(topo.Here4, 8081), "an added port")
	l.manage("port", "rm", s.name, "8081:80")
	if c, err := l.There.Dial("tcp", at(topo.Here4, 8081).String(), time.Second); err == nil {
		c.Close()
		t.Error("a removed port is still open")
	}
	if got := (guest.Exchange{Text: "hello"}).On(kept); !echoed(got) {
		t.Errorf("a connection to the port that stayed: %+v", got)
	}
	got, r := decodeOnce(l, guest.ReadNetNS{}, l.finish(l.command("rootless-net", append([]string{"exec", s.name}, program(guest.ReadNetNS{})...)...)))
	if want := do(s, guest.ReadNetNS{}); r.code != 0 || got != want {
		t.Errorf("exec: exit %d, namespace %q, want %q; %s", r.code, got, want, r.stderr)
	}
	if r := l.finish(l.command("rootless-net", append([]string{"exec", s.name}, program(guest.Exit{Code: 42})...)...)); r.code != 42 {
		t.Errorf("exec: exit %d, want 42; %s", r.code, r.stderr)
	}
}

func TestDetach(t *testing.T) {
	l := newLab(t)
	t.Cleanup(func() { // a test that fails half-way must not leave its sandbox to the machine
		for _, pid := range l.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	r := l.once([]string{"--detach", "--name", "behind", "-p", "8080:80"}, program(guest.ServeTCP{Server: guest.Echo, Port: 80})...)
	id := strings.TrimSpace(r.stdout)
	if r.code != 0 || len(id) < 12 {
		t.Fatalf("exit %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	eventually(t, 5*time.Second, func() string { // until the command listens; before, clients are reset
		c, err := l.There.Dial("tcp", at(topo.Here4, 8080).String(), time.Second)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		if got := (guest.Exchange{Text: "hello"}).On(c); !echoed(got) {
			return fmt.Sprintf("got %+v", got)
		}
		return ""
	})
	for _, pid := range l.processes() {
		if init := parent(t, pid); called(init) != "rootless-init" || called(parent(t, init)) != "rootless-run" {
			t.Errorf("ps shows %q, below %q", called(init), called(parent(t, init)))
		}
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(l.manage("inspect", "behind")), &list); err != nil || len(list) != 1 || list[0]["Id"] == "" {
		t.Errorf("inspect: %v, %v", list, err)
	}
	for _, pid := range l.processes() {
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), "\x00"+guest.Name(guest.ServeTCP{})+"\x00") {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	}
	l.nothingLeft(3 * time.Second)
	eventually(t, time.Second, func() string {
		if got := l.manage("ps"); strings.Contains(got, "behind") {
			return got
		}
		return ""
	})
}

// parent is the process that started pid.
func parent(t *testing.T, pid int) (ppid int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		_, err = fmt.Sscanf(string(text[bytes.LastIndexByte(text, ')')+1:]), " %c %d", new(rune), &ppid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// called is the name of a process for ps, pgrep and pidof.
func called(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(name))
}

// TestDetachedOutput: a command that writes without end does not fill the runtime directory, which is a tmpfs. The last
// lines are kept, and a program that opens /dev/stderr does not truncate the log.
func TestDetachedOutput(t *testing.T) {
	const most = 2 * 4 << 20 // rootless-run(1), FILES
	l := newLab(t)
	var pids []int
	t.Cleanup(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	r := l.once([]string{"--detach", "--network", "none"}, "sh", "-c",
		"yes 'a line of a server that has a lot to say' | head -n 500000; echo the last; echo and more > /dev/stderr; exec sleep 1000")
	if pids = l.processes(); r.code != 0 {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	id := strings.TrimSpace(r.stdout)
	size := func() (n int64) {
		for _, file := range l.files() {
			if st, err := os.Stat(file); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	eventually(t, 20*time.Second, func() string {
		r := l.finish(l.command("rootless-net", "logs", id))
		if n := size(); n > most+64<<10 { // the other files are small
			t.Fatalf("%d bytes in the runtime directory", n)
		}
		if !strings.HasSuffix(r.stdout, "to say\nthe last\n") || r.stderr != "and more\n" {
			return fmt.Sprintf("%d bytes, ending with %q, %q", len(r.stdout), r.stdout[max(0, len(r.stdout)-100):], r.stderr)
		}
		return ""
	})
	if n := size(); n < most/2 {
		t.Errorf("%d bytes are left of more than 20 MB", n)
	}
	if pids = l.processes(); len(pids) == 0 {
		t.Fatal("the command has ended")
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	l.nothingLeft(3 * time.Second)
	if n := size(); n < most/2 || n > most+128<<10 { // the log stays
		t.Errorf("%d bytes are left", n)
	}
	l.manage("rm", id)
	if size() != 0 {
		t.Error("left: ", l.files())
	}
}

// TestResolverFollowsTheHost: when the host's resolv.conf changes, queries go to the new server.
func TestResolverFollowsTheHost(t *testing.T) {
	l := newLab(t)
	old := fmt.Appendf(nil, "nameserver %v\n", topo.There4)
	rewrite := func(text []byte) {
		if err := hostResolvConf.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := hostResolvConf.WriteAt(text, 0); err != nil {
			t.Fatal(err)
		}
	}
	rewrite([]byte("nameserver 203.0.113.53\n")) // no server answers there
	t.Cleanup(func() { rewrite(old) })
	l.serveDNS()
	s := l.start()
	rewrite(old)
	eventually(t, 20*time.Second, func() string {
		if got := do(s, guest.QueryDNS{Server: gateway4, Name: "example.test", Type: dns.TypeA}); !slices.Equal(got.Data, []string{"192.0.2.80"}) {
			return got.String()
		}
		return ""
	})
}

// TestPCAP: the capture file holds the frames of a connection.
func TestPCAP(t *testing.T) {
	l := newLab(t)
	file := l.runtime + "/frames.pcap"
	srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
	s := l.start("--pcap", file)
	do(s, guest.Exchange{To: guest.To(srv), Text: "needle-in-the-capture"})
	s.stop()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) < 24 || !strings.Contains(string(data), "needle-in-the-capture") {
		t.Errorf("%d bytes without the exchange", len(data))
	}
}
