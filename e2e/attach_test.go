package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/nettest/topo"
)

// wantTraffic tries both directions: the namespace is connected. port is a published port of an Echo server inside; 0 for
// none.
func (n *namespace) wantTraffic(port uint16) {
	n.Helper()
	for _, f := range n.families() {
		srv, _ := n.serve(n.There, at(f.there, 0), guest.Echo)
		n.wantEchoFrom(f.here, srv)
		if port != 0 {
			n.wantClientSeen(n.There, at(f.here, port))
		}
	}
}

func TestAttach(t *testing.T) {
	onEveryLinkAttached(t, func(t *testing.T, n *namespace) {
		pidFile := filepath.Join(t.TempDir(), "pid")
		a := n.attach("--configure", "--name", "web", "-p", "8080:80", "--pid-file", pidFile, strconv.Itoa(n.pid))
		if text, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(a.cmd.Process.Pid) {
			t.Errorf("pid file: %q, %v", text, err)
		}
		n.listenTCP(guest.Echo, 80)
		n.wantTraffic(8080)
		if got := n.manage("ps"); !strings.Contains(got, "web") || !strings.Contains(got, "attach") {
			t.Errorf("ps:\n%s", got)
		}
		if got := n.manage("inspect", "web"); !strings.Contains(got, guest4.String()) {
			t.Errorf("inspect:\n%s", got)
		}
		n.manage("port", "add", "web", "8081:80")
		n.wantAnswer(n.There, at(topo.Here4, 8081), "an added port")
		// The helper has no more capabilities than the user that started it.
		if caps := status(t, a.cmd.Process.Pid, "CapEff"); strings.Trim(caps, "0") != "" {
			t.Errorf("CapEff %s", caps)
		}
		n.stop() // the namespace's own process
		a.ends(time.Second)
		if _, err := os.Stat(pidFile); !os.IsNotExist(err) {
			t.Errorf("pid file: %v", err)
		}
		n.nothingLeft(time.Second)
		n.portFree(8080, time.Second)
	})
}

// TestAttachTargets names the namespace in every way there is.
func TestAttachTargets(t *testing.T) {
	l := newLab(t)
	n := l.holder()
	pid := strconv.Itoa(n.pid)
	link := filepath.Join(t.TempDir(), "ns")
	if err := os.Symlink(n.file("net"), link); err != nil {
		t.Fatal(err)
	}
	asRoot := []string{"nsenter", "--target", pid, "--user", "--preserve-credentials", "--"}
	for name, c := range map[string]struct{ by, args []string }{
		"pid":                  {nil, []string{pid}},
		"path":                 {nil, []string{"--netns", n.file("net")}},
		"path, user namespace": {nil, []string{"--netns", link, "--userns", n.file("user")}},
		"pid, user namespace":  {nil, []string{"--userns", n.file("user"), pid}},
		"as root, pid":         {asRoot, []string{pid}},
		"as root, path":        {asRoot, []string{"--netns", link}},
	} {
		t.Run(name, func(t *testing.T) {
			a := l.attachBy(c.by, append([]string{"--configure"}, c.args...)...)
			n.T = t
			n.wantTraffic(0)
			if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			a.ends(time.Second)
			n.noLinks(3 * time.Second)
		})
	}
	n.T = t
	a := l.attach("--netns", link)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	a.ends(500 * time.Millisecond)
	n.noLinks(3 * time.Second)
}

func TestAttachForeignNamespace(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{1, "no such process", []string{"4194303"}},
		{1, "permission denied (the namespace's owner can attach to it", []string{"1"}},
		{1, "not a namespace of this type", []string{"--netns", file}},
		{1, "not a namespace of this type", []string{"--netns", "/proc/self/ns/user"}},
		{1, "no such file or directory", []string{"--netns", file + "x"}},
		{125, `invalid PID: "web"`, []string{"web"}},
		{125, "requires a PID", nil},
		{125, "one of them", []string{"--netns", file, "1"}},
	} {
		r := l.finish(l.command("rootless-net", append([]string{"attach"}, c.args...)...))
		if r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit %d %q, want %d %q", c.args, r.code, r.stderr, c.code, c.want)
		}
	}
	if left := l.files(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestAttachAgain: callers start a helper that was killed again, in the namespace as it is.
func TestAttachAgain(t *testing.T) {
	onEveryLinkAttached(t, func(t *testing.T, n *namespace) {
		pid := strconv.Itoa(n.pid)
		n.listenTCP(guest.Echo, 80)
		for range 3 {
			a := n.attach("--configure", "--ifname", "tap0", "-p", "8080:80", pid)
			n.wantTraffic(8080)
			if err := a.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-a.ended
		}
		a := n.attach("--configure", "--ifname", "tap0", pid)
		second := n.finish(n.command("rootless-net", append(append([]string{"attach"}, n.flags...), "--ifname", "tap0", pid)...))
		if second.code != 1 || !strings.Contains(second.stderr, "tap0: file exists") {
			t.Errorf("a second one beside the first: exit %d, %q", second.code, second.stderr)
		}
		n.wantTraffic(0)
		a.exit.Close()
		a.ends(time.Second)
		n.noLinks(3 * time.Second)
	})
}

func TestAttachSignalBeforeReady(t *testing.T) {
	l := newLab(t)
	n := l.holder()
	for range 10 {
		cmd := l.command("rootless-net", "attach", "--configure", strconv.Itoa(n.pid))
		l.launch(cmd)
		time.Sleep(10 * time.Millisecond) // so that it is killed at different points of its start
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); err != nil && !(ws.Signaled() && ws.Signal() == syscall.SIGTERM) {
			t.Errorf("ended: %v", err)
		}
	}
	n.noLinks(3 * time.Second)
}

// TestAttachBare leaves the addresses to the namespace's own clients.
func TestAttachBare(t *testing.T) {
	onEveryLinkAttached(t, func(t *testing.T, n *namespace) {
		n.attach("--ifname", "up0", "--mtu", "1500", strconv.Itoa(n.pid))
		if text := n.enter("ip", "-oneline", "address", "show", "dev", "up0"); strings.Contains(text, "inet") {
			t.Errorf("the interface was configured: %s", text)
		}
		n.enter("ip", "link", "set", "up0", "up")
		n.wantLease("up0")
		if n.IPv6 {
			eventually(t, 10*time.Second, func() string {
				text := n.enter("ip", "-oneline", "-6", "address", "show", "dev", "up0", "scope", "global")
				if !strings.Contains(text, "fd52:6e65:7400:") || strings.Contains(text, "tentative") {
					return "no address by router advertisement: " + text
				}
				return ""
			})
		}
	})
}

// TestAttachPersistentTAP uses a device that the namespace's owner has made, and restores it.
func TestAttachPersistentTAP(t *testing.T) {
	l := newLab(t)
	if kinds(t)[0] != "tap" {
		skip.Missing(t, "no /dev/net/tun")
	}
	n := l.holder()
	n.enter("ip", "tuntap", "add", "name", "tap0", "mode", "tap")
	show := func() string {
		return n.enter("sh", "-c", "ip address show dev tap0 | sed s/qdisc.*state/state/; ip route show dev tap0")
	}
	before := show()
	for range 2 {
		a := l.attach("--configure", "--ifname", "tap0", strconv.Itoa(n.pid))
		n.wantTraffic(0)
		a.exit.Close()
		a.ends(time.Second)
		eventually(t, time.Second, func() string {
			if after := show(); after != before {
				return fmt.Sprintf("before:\n%safter:\n%s", before, after)
			}
			return ""
		})
	}
	// As RootlessKit does it: the device exists, and the program that made it configures it when we are ready.
	l.attach("--ifname", "tap0", strconv.Itoa(n.pid))
	n.enter("sh", "-c", "ip link set tap0 mtu 65520 up; ip address add 10.0.2.100/24 dev tap0; ip route add default via 10.0.2.2 dev tap0")
	srv, _ := l.serve(l.There, at(topo.There4, 0), guest.Echo)
	n.wantEcho(srv)
}

// TestAttachSystemd is started as a service manager does: with the socket of a port, and with one to report to.
func TestAttachSystemd(t *testing.T) {
	l := newLab(t)
	n := l.holder()
	n.listenTCP(guest.Echo, 80)
	notify := filepath.Join(l.runtime, "notify")
	reports, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer reports.Close()
	listener, err := l.Here.Listen("tcp4", at(topo.Here4, 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.command("rootless-net", "attach", "--configure", "-p", topo.Here4.String()+":8080:80", strconv.Itoa(n.pid))
	env := append(cmd.Env, "NOTIFY_SOCKET="+notify, "LISTEN_FDS=1")
	cmd = l.Here.Command(append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, cmd.Args...)...)
	cmd.Env, cmd.ExtraFiles = env, []*os.File{file}
	stderr := &buffer{}
	cmd.Stderr = stderr
	l.launch(cmd)
	file.Close()
	listener.Close()
	_ = reports.SetReadDeadline(time.Now().Add(opPatience))
	report := func() string {
		buf := make([]byte, 1000)
		size, err := reports.Read(buf)
		if err != nil {
			t.Fatalf("no report: %v; stderr:\n%s", err, stderr)
		}
		return string(buf[:size])
	}
	if got := report(); !strings.HasPrefix(got, "READY=1\n") || !strings.Contains(got, "STATUS=Serving eth0 with 1 published ports") {
		t.Errorf("reported %q", got)
	}
	l.wantAnswer(l.There, at(topo.Here4, 8080), "the passed socket")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if got := report(); got != "STOPPING=1" {
		t.Errorf("reported %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended: %v; stderr:\n%s", err, stderr)
	}
}

// TestRootlessctl changes ports by RootlessKit's own client.
func TestRootlessctl(t *testing.T) {
	if _, err := exec.LookPath("rootlessctl"); err != nil {
		skip.Missing(t, "no rootlessctl (package rootlesskit)")
	}
	l := newLab(t)
	n := l.holder()
	n.listenTCP(guest.Echo, 80)
	socket := filepath.Join(l.runtime, "api.sock")
	l.attach("--configure", "-p", "8080:80", "--api-socket", socket, strconv.Itoa(n.pid))
	ctl := func(args ...string) result {
		return l.finish(l.Here.Command(append([]string{"rootlessctl", "--socket", socket}, args...)...))
	}
	if r := ctl("add-ports", "0.0.0.0:8081:80/tcp"); r.code != 0 || strings.TrimSpace(r.stdout) != "2" {
		t.Errorf("add-ports: %+v", r)
	}
	if r := ctl("list-ports", "--json"); r.code != 0 || strings.Count(r.stdout, `"parentPort"`) != 2 {
		t.Errorf("list-ports: %+v", r)
	}
	if r := ctl("info", "--json"); r.code != 0 || !strings.Contains(r.stdout, guest4.String()) {
		t.Errorf("info: %+v", r)
	}
	l.wantAnswer(l.There, at(topo.Here4, 8081), "the added port")
	if r := ctl("add-ports", "0.0.0.0:8081:80/tcp"); r.code == 0 || !strings.Contains(r.stderr, "port is already allocated") {
		t.Errorf("add-ports of a taken port: %+v", r)
	}
	if r := ctl("remove-ports", "2"); r.code != 0 {
		t.Errorf("remove-ports: %+v", r)
	}
	l.portFree(8081, time.Second)
	if r := ctl("remove-ports", "2"); r.code == 0 || !strings.Contains(r.stderr, "no port has the id 2") {
		t.Errorf("remove-ports of none: %+v", r)
	}
}

// TestEmbed is the example that makes its own namespaces.
func TestEmbed(t *testing.T) {
	l := newLab(t)
	s := l.agent("embed", l.command("embed", append([]string{"-p", "8080:80", "--"}, agentProgram()...)...))
	s.listenTCP(guest.Echo, 80)
	for _, f := range l.families() {
		l.wantClientSeen(l.There, at(f.here, 8080), "to the container")
	}
	if r := l.finish(l.command("embed", append([]string{"--"}, program(guest.Exit{Code: 42})...)...)); r.code != 42 {
		t.Errorf("exit %d, want 42; %s", r.code, r.stderr)
	}
	s.stop()
	l.nothingLeft(time.Second)
}
