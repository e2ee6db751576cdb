package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/skip"
)

// The flags that docker run has, with the meaning that they have here.

// refused expects that a command line ends with the status before anything has run, and that the text says why.
func (r result) wantRefused(t *testing.T, code int, words string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.stderr, words) || r.stdout != "" {
		t.Errorf("exit %d, stdout %q, stderr %q; want exit %d and %q", r.code, r.stdout, r.stderr, code, words)
	}
}

func TestDockerVolumeIsRefused(t *testing.T) {
	l := newLab(t)
	l.once([]string{"-v", "src:/dst"}, "echo", "ran").wantRefused(t, 125, "-v, --volume is not supported: the command sees this host's files")
	l.once([]string{"--memory", "512m"}, "echo", "ran").wantRefused(t, 125, "-m, --memory is not supported: ")
	l.once([]string{"--ip", "10.0.99.5"}, "echo", "ran").wantRefused(t, 125, "no configured subnet contains IP address 10.0.99.5")
	l.once([]string{"--network", "none", "--network", "host"}, "echo", "ran").wantRefused(t, 125, "conflicting options: network none and network host")
	l.once(nil, "alpine:3.20").wantRefused(t, 127, "There are no images")
}

func TestDockerUser(t *testing.T) {
	l := newLab(t)
	uid, gid := os.Getuid(), os.Getgid()
	for _, c := range []struct {
		flags []string
		want  guest.Identity
	}{
		{[]string{"-u", fmt.Sprint(uid)}, guest.Identity{UID: uid, GID: gid}},
		{[]string{"-u", fmt.Sprintf("%d:%d", uid, gid), "--userns", "keep-id"}, guest.Identity{UID: uid, GID: gid}},
		{[]string{"-u", "0:0"}, guest.Identity{}},
		{[]string{"-u", "root"}, guest.Identity{}},
	} {
		got, r := once(l, guest.ReadIdentity{}, c.flags...)
		if r.code != 0 || got.UID != c.want.UID || got.GID != c.want.GID || (got.Capabilities != 0) != (c.want.UID == 0) {
			t.Errorf("%v: exit %d, %+v, want %+v; stderr %q", c.flags, r.code, got, c.want, r.stderr)
		}
	}
	l.once([]string{"-u", "12345", "--userns", "keep-id"}, "true").wantRefused(t, 125, "user 12345:0 does not exist inside")
	l.once([]string{"-u", "no-such"}, "true").wantRefused(t, 125, "unable to find user no-such: no matching entries in passwd file")

	// With subordinate ids another user exists, in a sandbox that is joined as well; without, the kernel refuses it.
	got, r := once(l, guest.ReadIdentity{}, "-u", "1:2")
	switch {
	case r.code == 0 && got != guest.Identity{UID: 1, GID: 2}:
		t.Errorf("user 1:2 is %+v", got)
	case r.code != 0:
		r.wantRefused(t, 125, "unable to find user 1:2: the user namespace does not have it")
	}
	s := l.start("--userns", "root")
	l.once([]string{"--network", "container:" + s.name, "-u", "1"}, "true").wantRefused(t, 125, "the user namespace does not have it")
}

// TestDockerCapabilities: a command that is not root inside changes its network with --cap-add, and what it starts has the
// capability too.
func TestDockerCapabilities(t *testing.T) {
	l := newLab(t)
	bridge := guest.AddBridge{Name: "br7"}
	if _, r := once(l, bridge, "--userns", "keep-id"); r.code == 0 {
		t.Error("a command without a capability has made a bridge")
	}
	if _, r := once(l, bridge, "--userns", "keep-id", "--cap-add", "NET_ADMIN"); r.code != 0 {
		t.Errorf("with NET_ADMIN: exit %d, %s", r.code, r.stderr)
	}
	const admin, raw = 1 << 12, 1 << 13
	s := l.start("--userns", "keep-id", "--cap-add", "NET_ADMIN", "--cap-add", "cap_net_raw")
	if got := do(s, guest.ReadIdentity{}); got.UID != os.Getuid() || got.Capabilities != admin|raw {
		t.Errorf("%+v", got)
	}
	if got := do(s, guest.RunShell{Script: "grep CapEff /proc/self/status"}); !strings.Contains(got.Output, "0000000000003000") {
		t.Errorf("a child of the command: %+v", got)
	}
}

func TestDockerSysctl(t *testing.T) {
	l := newLab(t)
	s := l.start("--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "net/ipv4/conf/eth0/arp_ignore=2")
	for path, want := range map[string]string{"ip_forward": "1", "conf/eth0/arp_ignore": "2"} {
		if got := do(s, guest.ReadFile{Path: "/proc/sys/net/ipv4/" + path}).Text; strings.TrimSpace(got) != want {
			t.Errorf("%s is %q", path, got)
		}
	}
	l.once([]string{"--sysctl", "net.ipv4.no_such=1"}, "echo", "ran").wantRefused(t, 125, "set sysctl net.ipv4.no_such: ")
	l.once([]string{"--network", "host", "--sysctl", "net.ipv4.ip_forward=1"}, "echo", "ran").wantRefused(t, 125, "is not allowed in the hosts network namespace")
}

func TestDockerReadOnly(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(l.runtime, "file")
	for _, mode := range []string{"bridge", "host", "none"} {
		r := l.once([]string{"--network", mode, "--read-only"}, "sh", "-c", "echo x > "+file+"; echo y > /dev/null && echo dev")
		if r.code != 0 || r.stdout != "dev\n" || !strings.Contains(r.stderr, "Read-only file system") {
			t.Errorf("%s: %+v", mode, r)
		}
	}
	if r := l.once(nil, "sh", "-c", "echo x > "+file); r.code != 0 {
		t.Errorf("without the flag: %+v", r)
	}
	// The files of the sandbox can still be changed by its supervisor, and a sandbox inside works.
	s := l.start("--read-only")
	if got := do(s, guest.ReadFile{Path: "/etc/resolv.conf"}).Text; !strings.Contains(got, gateway4.String()) {
		t.Errorf("resolv.conf: %s", got)
	}
}

func TestDockerIDFileAndLabels(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(l.runtime, "id")
	r := l.once([]string{"--cidfile", file}, "cat", file)
	if len(r.stdout) != 64 || r.code != 0 {
		t.Errorf("the command reads %+v", r)
	}
	l.once([]string{"--cidfile", file}, "echo", "ran").wantRefused(t, 125, "container ID file found, make sure the other container isn't running or delete "+file)
	other := filepath.Join(l.runtime, "id2")
	if r := l.once([]string{"--cidfile", other}, "/no/such"); r.code != 127 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("the id of a command that was not started: %v", err)
	}

	id := filepath.Join(l.runtime, "id3")
	s := l.start("--label", "tier=front", "-l", "plain", "--cidfile", id)
	var list []struct {
		ID     string `json:"Id"`
		Labels map[string]string
	}
	if err := json.Unmarshal([]byte(l.manage("inspect", s.name)), &list); err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	if got := list[0]; got.Labels["tier"] != "front" || len(got.Labels) != 2 {
		t.Errorf("%+v", got)
	}
	if text, err := os.ReadFile(id); err != nil || string(text) != list[0].ID {
		t.Errorf("%s, %v", text, err)
	}
}

// TestDockerPortInUse: the error says which sandbox has the port, published at the start or later, or that another program has it.
func TestDockerPortInUse(t *testing.T) {
	l := newLab(t)
	s := l.start("-p", "8080:80/udp")
	l.manage("port", "add", s.name, "8081:80")
	taken := "port is already allocated to sandbox " + s.name
	l.once([]string{"-p", "8080:80/udp"}, "echo", "ran").wantRefused(t, 125, "Bind for 0.0.0.0:8080 failed: "+taken)
	l.once([]string{"-p", "127.0.0.1:8081:80"}, "echo", "ran").wantRefused(t, 125, "Bind for 127.0.0.1:8081 failed: "+taken)
	other := l.start("-p", "8082:80")
	if r := l.finish(l.command("rootless-net", "port", "add", other.name, "8081:80")); r.code == 0 || !strings.Contains(r.stderr, taken) {
		t.Errorf("port add: %+v", r)
	}

	listener, err := l.Here.Listen("tcp", "0.0.0.0:8090")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l.once([]string{"-p", "8090:80"}, "echo", "ran").wantRefused(t, 125, "failed to bind host port 0.0.0.0:8090/tcp: address already in use by another program")
}

// TestDockerExpose: with -P an exposed port is published before anything listens on it, and a client reaches the server later.
func TestDockerExpose(t *testing.T) {
	l := newLab(t)
	s := l.start("-P", "--expose", "80")
	var ports struct {
		Ports []struct{ HostPort, GuestPort uint16 }
	}
	var list []struct{ Sandbox json.RawMessage }
	if err := json.Unmarshal([]byte(l.manage("inspect", s.name)), &list); err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	if err := json.Unmarshal(list[0].Sandbox, &ports); err != nil || len(ports.Ports) == 0 || ports.Ports[0].GuestPort != 80 || ports.Ports[0].HostPort == 0 {
		t.Fatalf("%+v, %v", ports, err)
	}
	s.listenTCP(guest.Echo, 80)
	for _, f := range l.families() {
		got, err := l.There.Dial("tcp", at(f.here, ports.Ports[0].HostPort).String(), opPatience)
		if err != nil {
			t.Error(err)
			continue
		}
		got.Close()
	}
}

// TestDockerStopSignal: the command gets its own stop signal for the SIGTERM of rootless-net stop.
func TestDockerStopSignal(t *testing.T) {
	l := newLab(t)
	cmd := l.command("rootless-run", "--name", "stopped", "--stop-signal", "QUIT", "sh", "-c",
		`trap 'echo quit; exit 3' QUIT; trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done`)
	out := &buffer{}
	cmd.Stdout = out
	l.launch(cmd)
	eventually(t, opPatience, func() string {
		if !strings.Contains(out.String(), "ready") {
			return "the command is not ready"
		}
		return ""
	})
	l.manage("stop", "stopped")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 || out.String() != "ready\nquit\n" {
		t.Errorf("exit %d, %q", code, out.String())
	}
}

// TestDockerPID: --pid host is Docker's, which is the default; --pid alone and --pid private are a namespace of its own.
func TestDockerPID(t *testing.T) {
	l := newLab(t)
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flags []string
		host  bool
	}{{nil, true}, {[]string{"--pid", "host"}, true}, {[]string{"--pid"}, false}, {[]string{"--pid", "private"}, false}} {
		r := l.finish(l.command("rootless-run", append(c.flags, "readlink", "/proc/self/ns/pid")...))
		if r.code != 0 || (strings.TrimSpace(r.stdout) == ours) != c.host {
			t.Errorf("%v: %+v, ours %s", c.flags, r, ours)
		}
	}
}

// TestMembershipReportsAreNotDrops: what a kernel sends by itself when an interface comes up is not a drop.
func TestMembershipReportsAreNotDrops(t *testing.T) {
	onEveryLinkAtOnce(t, func(t *testing.T, l *lab) {
		s := l.start()
		if !l.IPv6 {
			skip.Missing(t, "without IPv6 a kernel sends no reports")
		}
		eventually(t, opPatience, func() string {
			if s.counter("frame.group-reports") == 0 {
				return "no report was counted"
			}
			return ""
		})
		for name, n := range s.counters().values {
			if strings.HasPrefix(name, "drop.") && n > 0 {
				t.Errorf("%s is %d", name, n)
			}
		}
	})
}
