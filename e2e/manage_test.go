package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// serveDNS answers example.test. in "there", with the client's address in a TXT record of who.test.
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
	packets, err := l.There.ListenPacket("udp", at(topo.There4, 53))
	if err != nil {
		l.Fatal(err)
	}
	listener, err := l.There.Listen("tcp", at(topo.There4, 53))
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
		text := s.do("read", "/etc/resolv.conf")
		if !strings.Contains(text, "nameserver 10.0.2.") {
			t.Errorf("resolv.conf inside: %s", text)
		}
		_, server, _ := strings.Cut(text, "nameserver ")
		server, _, _ = strings.Cut(server, `\n`)
		for _, network := range []string{"udp", "tcp"} {
			s.want("NOERROR 192.0.2.80", "dns", "example.test", "A", server, network)
			s.want("NOERROR", "dns", "example.test", "AAAA", server, network)
			s.want("NXDOMAIN", "dns", "nobody.test", "A", server, network)
			s.want("NOERROR 192.0.2.5", "dns", "db.test", "A", server, network)
			s.want("NOERROR "+gateway4, "dns", "host.docker.internal", "A", server, network)
			s.want("NOERROR", "dns", "host.docker.internal", "MX", server, network)
		}
		if got := s.do("dns", "large.test", "TXT", server, "tcp"); strings.Count(got, fmt.Sprintf("%064d", 7)) != 1 || !strings.Contains(got, fmt.Sprintf("%064d", 59)) {
			t.Errorf("a large answer by TCP: %.100q", got)
		}
	})
}

func TestFilesInside(t *testing.T) {
	l := newLab(t)
	s := l.start("--hostname", "shell.test", "--dns", "192.0.2.53", "--dns-search", "corp.test", "--dns-opt", "ndots:3",
		"--add-host", "db.test:192.0.2.5", "--mac-address", "02:00:00:00:00:07", "--mtu", "1400", "--ip", "10.0.2.42")
	s.want("shell.test", "hostname")
	for file, wants := range map[string][]string{
		"/etc/resolv.conf":            {"search corp.test", "ndots:3"},
		"/etc/hosts":                  {"127.0.0.1", "192.0.2.5", "db.test", "10.0.2.42", "shell.test", "host.docker.internal"},
		"/sys/class/net/eth0/address": {"02:00:00:00:00:07"},
	} {
		got := s.do("read", file)
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s has no %q: %s", file, want, got)
			}
		}
	}
	if got := s.do("links"); !strings.Contains(got, "eth0:up:1400") || !strings.Contains(got, "lo:up:") {
		t.Errorf("links: %s", got)
	}
}

func TestDHCP(t *testing.T) {
	onEveryLink(t, func(t *testing.T, l *lab) {
		s := l.start()
		if got := s.do("dhcp", "eth0"); !strings.HasPrefix(got, guest4+"/24 "+gateway4+" 10.0.2.") {
			t.Errorf("lease: %q", got)
		}
	})
}

func TestManage(t *testing.T) {
	l := newLab(t)
	s := l.start("-p", "8080:80")
	s.do("serve-tcp", ":80")
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
		if c.IPv4Address != guest4+"/24" {
			t.Errorf("inspect says the address is %q", c.IPv4Address)
		}
	}
	kept := l.connectTo(l.There, at(topo.Here4, 8080))
	l.manage("port", "add", s.name, "8081:80")
	if got, err := guest.Exchange(l.connectTo(l.There, at(topo.Here4, 8081)), "hi"); err != nil || !strings.HasSuffix(got, " hi") {
		t.Errorf("an added port: %q, %v", got, err)
	}
	l.manage("port", "rm", s.name, "8081:80")
	if c, err := l.There.Dial("tcp", at(topo.Here4, 8081), time.Second); err == nil {
		c.Close()
		t.Error("a removed port is still open")
	}
	if got, err := guest.Exchange(kept, "still"); err != nil || !strings.HasSuffix(got, " still") {
		t.Errorf("a connection to the port that stayed: %q, %v", got, err)
	}
	r := l.finish(l.command("rootless-net", append([]string{"exec", s.name}, op("netns")...)...))
	if want := s.do("netns"); r.code != 0 || strings.TrimSpace(r.stdout) != want {
		t.Errorf("exec: exit %d, namespace %q, want %q; %s", r.code, r.stdout, want, r.stderr)
	}
	if r := l.finish(l.command("rootless-net", append([]string{"exec", s.name}, op("exit", "42")...)...)); r.code != 42 {
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
	r := l.once([]string{"--detach", "--name", "behind", "-p", "8080:80"}, op("serve-tcp", ":80")...)
	id := strings.TrimSpace(r.stdout)
	if r.code != 0 || len(id) < 12 {
		t.Fatalf("exit %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	eventually(t, 5*time.Second, func() string { // until the command listens; before, clients are reset
		c, err := l.There.Dial("tcp", at(topo.Here4, 8080), time.Second)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		if got, err := guest.Exchange(c, "hi"); err != nil || !strings.HasSuffix(got, " hi") {
			return fmt.Sprintf("got %q, %v", got, err)
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
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), "guest\x00serve-tcp") {
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

// TestDetachedOutput: a command that writes without end does not fill the runtime directory, which is memory; the last it
// said is there, and what opens /dev/stderr empties nothing.
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
	dir := filepath.Join(l.runtime, "rootless-run", strings.TrimSpace(r.stdout)[:12])
	size := func() (n int64) {
		for _, file := range l.files() {
			if st, err := os.Stat(file); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	eventually(t, 20*time.Second, func() string {
		text, err := os.ReadFile(filepath.Join(dir, "output.log"))
		if n := size(); n > most+64<<10 { // the other files are small
			t.Fatalf("%d bytes in the runtime directory", n)
		}
		if !strings.HasSuffix(string(text), "to say\nthe last\nand more\n") {
			return fmt.Sprintf("%d bytes, ending with %q, %v", len(text), text[max(0, len(text)-100):], err)
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
	eventually(t, time.Second, func() string {
		if size() == 0 {
			return ""
		}
		return fmt.Sprint("left: ", l.files())
	})
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
	rewrite([]byte("nameserver 203.0.113.53\n")) // silence
	t.Cleanup(func() { rewrite(old) })
	l.serveDNS()
	s := l.start()
	rewrite(old)
	eventually(t, 20*time.Second, func() string {
		if got := s.do("dns", "example.test", "A", gateway4); got != "NOERROR 192.0.2.80" {
			return got
		}
		return ""
	})
}

// TestPCAP: the file holds the frames of a connection, and reads as a capture.
func TestPCAP(t *testing.T) {
	l := newLab(t)
	file := l.runtime + "/frames.pcap"
	srv, _ := l.serve(l.There, at(topo.There4, 0), echo)
	s := l.start("--pcap", file)
	s.do("exchange", srv, "needle-in-the-capture")
	s.stop()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) < 24 || !strings.Contains(string(data), "needle-in-the-capture") {
		t.Errorf("%d bytes without the exchange", len(data))
	}
}
