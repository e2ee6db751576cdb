package callers

import (
	"bytes"
	"fmt"
	"io"
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
)

// target is a process in a user and a network namespace of its own.
type target struct {
	*user
	pid string
}

func newTarget(t *testing.T) target {
	t.Helper()
	need(t, "unshare", "nsenter", "ip")
	u := newUser(t)
	cmd := u.command("unshare", "-Urn", "sh", "-c", "echo $$; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		noneLeft(t, "slirp4netns", "pasta")
	})
	buf := make([]byte, 32)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return target{u, strings.TrimSpace(string(buf[:n]))}
}

// in runs a program in the namespace.
func (g target) in(argv ...string) string {
	g.Helper()
	out, _ := g.try(append(g.enter(), argv...)...)
	return out
}

// enter is the command line that runs what follows as root in the namespace.
func (g target) enter() []string {
	return []string{"nsenter", "-U", "--preserve-credentials", "-n", "-t", g.pid}
}

// program is the command line that runs the guest program in the namespace.
func (g target) program() []string { return append(g.enter(), self(g.T)) }

// get sends a request to an HTTP server from the namespace.
func (g target) get(host string, port uint16) guest.HTTPAnswer {
	g.Helper()
	return once(g.user, guest.GetHTTP{URL: url(host, port)}, g.program()...)
}

// ask sends a datagram to a UDP server from the namespace.
func (g target) ask(host string, port uint16) guest.Echoed {
	g.Helper()
	return once(g.user, guest.AskUDP{To: guest.Target{Host: host, Port: port}, Text: "hello", Timeout: 3 * time.Second}, g.program()...)
}

// helper starts cmd with an exit and a ready descriptor, 3 and 4, and returns the other end of each, and its output.
func (g target) helper(cmd *exec.Cmd) (exitW, readyR *os.File, text *bytes.Buffer) {
	g.Helper()
	exitR, exitW, err := os.Pipe()
	if err != nil {
		g.Fatal(err)
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		g.Fatal(err)
	}
	text = new(bytes.Buffer)
	cmd.ExtraFiles = []*os.File{exitR, readyW}
	cmd.Stdout, cmd.Stderr = text, text
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	exitR.Close()
	readyW.Close()
	return exitW, readyR, text
}

// slirp starts slirp4netns and returns when it has sent its ready byte; end closes its exit descriptor and returns the
// exit status.
func (g target) slirp(args ...string) (end func() error) {
	g.Helper()
	cmd := g.command(append([]string{filepath.Join(bins, "slirp4netns"), "-e", "3", "-r", "4"}, args...)...)
	exitW, readyR, text := g.helper(cmd)
	_ = readyR.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(readyR); err != nil || string(got) != "1" {
		exitW.Close()
		_ = cmd.Wait()
		g.Fatalf("ready: %q, %v\n%s", got, err, text)
	}
	readyR.Close()
	end = func() error { exitW.Close(); return cmd.Wait() }
	g.Cleanup(func() { exitW.Close(); _ = cmd.Process.Kill() })
	return end
}

// TestSlirp4netns: the namespace looks as with the original, and the helper ends by the exit descriptor.
func TestSlirp4netns(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	socket := filepath.Join(g.home, "s")
	end := g.slirp("-c", "-6", "--mtu=9000", "-a", socket, g.pid, "tap0")
	expect(t, "the interface", g.in("ip", "addr"), "mtu 9000", "inet 10.0.2.100/24", "inet6 fd00::")
	expect(t, "routes", g.in("ip", "route"), "default via 10.0.2.2 dev tap0")
	wantSeen(t, "the host's loopback", g.get("10.0.2.2", port), "127.0.0.1")
	wantOutcome(t, "an address that no machine has", g.get("10.0.2.77", port), guest.HostUnreachable)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, `{"execute":"list_hostfwd"}`)
	_ = c.(*net.UnixConn).CloseWrite()
	reply, _ := io.ReadAll(c)
	c.Close()
	if string(reply) != `{"return":{"entries":[]},"entries":[]}` {
		t.Errorf("API: %s", reply)
	}
	if err := end(); err != nil {
		t.Errorf("exit status: %v", err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the API socket is still there")
	}
	if out := g.in("ip", "addr"); strings.Contains(out, "tap0") {
		t.Errorf("the interface is still there:\n%s", out)
	}
}

// TestSlirp4netnsClosed: the errors of connect for what is closed.
func TestSlirp4netnsClosed(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	end := g.slirp("-c", "--disable-host-loopback", "--disable-dns", g.pid, "tap0")
	wantOutcome(t, "the host's loopback", g.get("10.0.2.2", port), guest.NetUnreachable)
	wantOutcome(t, "an address that no machine has", g.get("10.0.2.77", port), guest.HostUnreachable)
	wantOutcome(t, "the name server that is off", g.get("10.0.2.3", 53), guest.TimedOut)
	if out := g.in("ip", "-6", "addr", "show", "dev", "tap0", "scope", "global"); strings.Contains(out, "inet6") {
		t.Errorf("IPv6 without being asked for:\n%s", out)
	}
	// A second helper in the same namespace, after the first.
	if err := end(); err != nil {
		t.Error(err)
	}
	end = g.slirp("-c", "--netns-type=path", "/proc/"+g.pid+"/ns/net", "tap0")
	wantSeen(t, "the second one", g.get(host4, port), host4)
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestPastaProcess: the first process ends when everything is set up, the pid file included; the second ends with the namespace.
func TestPastaProcess(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	pidFile := filepath.Join(g.home, "pid")
	out := g.run(filepath.Join(bins, "pasta"), "--config-net", "-t", "18082:80", "-u", "18082:80", "-T", "none", "-U", "none", "--pid", pidFile,
		"--map-guest-addr", "169.254.1.2", "--dns-forward", "169.254.1.1", g.pid)
	if out != "" {
		t.Errorf("it printed %q", out)
	}
	text, err := os.ReadFile(pidFile)
	if pid, cerr := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || cerr != nil || !strings.Contains(fmt.Sprint(running("pasta")), strconv.Itoa(pid)) {
		t.Errorf("pid file %q, %v; running %v", text, err, running("pasta"))
	}
	expect(t, "the interface", g.in("ip", "addr", "show", "lan0"), "inet "+host4+"/24", "inet6 "+host6+"/64")
	expect(t, "routes", g.in("ip", "route"), "default via 198.51.100.254 dev lan0")
	wantSeen(t, "the mapped guest address", g.get("169.254.1.2", port), "")
	wantSeen(t, "the gateway", g.get("198.51.100.254", port), "127.0.0.1")
	begin(g.user, guest.ServeHTTP{Port: 80}, g.program()...)
	soonSeen(t, 5*time.Second, "", func() guest.HTTPAnswer { return get(host4, 18082) })
	wantUDPSeen(t, "UDP", ask(host4, 18082), "")
}

// TestPastaForPodman: the arguments of Podman 5, in the namespaces it makes: root of a user namespace with mounts of its own,
// one of which is the network namespace. The addresses exist when the first process ends; the second ends when the path is detached and removed.
func TestPastaForPodman(t *testing.T) {
	need(t, "unshare", "nsenter", "ip")
	const gateway = "198.51.100.254"
	for name, c := range map[string]struct{ flag, host, seen string }{
		"default":                  {"--no-map-gw", "169.254.1.2", host4},
		"--network pasta:--map-gw": {"", gateway, "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUser(t)
			port := serveHost(t)
			a := u.agent(append([]string{"unshare", "-Urm", self(t)}, guest.AgentCommand()...)...)
			inside := func(op []string) string {
				return "nsenter --net=ns " + shellWords(append([]string{self(t)}, op...)...)
			}
			if got := do(a, guest.RunShell{Script: fmt.Sprintf(`set -e
touch ns
unshare -n mount --bind /proc/self/ns/net ns
%s/pasta --config-net -t 18083-18083:80-80 -u 18083-18083:80-80 --dns-forward 169.254.1.1 -T none -U none %s --quiet --netns "$PWD/ns" --map-guest-addr 169.254.1.2`,
				bins, c.flag)}); got.Code != 0 {
				t.Fatalf("pasta: %+v", got)
			}
			expect(t, "the interface", a.sh("nsenter --net=ns ip addr"), "inet "+host4+"/24", "inet6 "+host6+"/64")
			expect(t, "routes", a.sh("nsenter --net=ns ip route"), "default via "+gateway+" dev lan0")
			request := guest.GetHTTP{URL: url(c.host, port)}
			answer, err := guest.Decode(request, a.sh(inside(guest.Command(request))))
			if err != nil {
				t.Fatal(err)
			}
			wantSeen(t, c.host, answer, c.seen)
			server := strings.TrimSpace(a.sh(inside(guest.Command(guest.ServeHTTP{Port: 80})) + " > /dev/null 2>&1 & echo $!"))
			soonSeen(t, 5*time.Second, gateway, func() guest.HTTPAnswer { return get(host4, 18083) })
			wantUDPSeen(t, "UDP", ask(host4, 18083), gateway)
			a.sh("kill " + server + "; umount -l ns; rm ns")
			noneLeft(t, "pasta")
			if err := a.end(); err != nil {
				t.Errorf("%v: %s", err, &a.stderr)
			}
		})
	}
}

// TestPastaCommand: a command has the network, and pasta exits with its status.
func TestPastaCommand(t *testing.T) {
	need(t, "ip")
	u := newUser(t)
	port := serveHost(t)
	pasta := filepath.Join(bins, "pasta")
	none := []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none"}
	a := u.agent(append(append(append([]string{pasta, "--config-net"}, none...), self(t)), guest.AgentCommand()...)...)
	expect(t, "a command", a.sh("id -u; ip addr"), "0\n", "inet "+host4+"/24")
	wantSeen(t, "the gateway", a.get(url("198.51.100.254", port)), "127.0.0.1")
	if err := a.end(); err != nil {
		t.Errorf("%v: %s", err, &a.stderr)
	}
	for _, c := range []struct {
		argv []string
		code int
	}{
		{append(append([]string{pasta}, none...), "sh", "-c", "exit 7"), 7},
		{append(append([]string{pasta}, none...), "sh", "-c", `sh -c 'kill -KILL $$'; exit $?`), 137},
		{append(append([]string{pasta}, none...), "/nonexistent"), 1},
		{[]string{pasta, "--bogus"}, 1},
		{[]string{pasta, "-t", "none", "-t", "22", "true"}, 1},
		{[]string{pasta, "--host-lo-to-ns-lo", "--version"}, 0},
	} {
		cmd := u.command(c.argv...)
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != c.code {
			t.Errorf("%v: exit status %d, want %d", c.argv[1:], got, c.code)
		}
	}
	noneLeft(t, "pasta")
}

// TestPastaPortInUse: the first process prints the error and fails.
func TestPastaPortInUse(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	out, err := g.try(filepath.Join(bins, "pasta"), "--config-net", "-t", fmt.Sprint(port), "-u", "none", "-T", "none", "-U", "none", g.pid)
	if _, ok := err.(*exec.ExitError); !ok {
		t.Errorf("it did not fail: %v", err)
	}
	expect(t, "the error", out, fmt.Sprint(port))
	noneLeft(t, "pasta")
}

// TestByPathAsRootInside starts helpers as Podman does. Once they have dropped their capabilities they cannot read the path
// of a process any more, which must not end them.
func TestByPathAsRootInside(t *testing.T) {
	g := newTarget(t)
	netns := "/proc/" + g.pid + "/ns/net"
	for _, argv := range [][]string{
		{"slirp4netns", "-c", "--enable-sandbox", "--enable-seccomp", "--netns-type=path", netns, "tap0"},
		{"pasta", "-f", "-q", "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--netns", netns},
		{"rootless-net", "attach", "--configure", "--netns", netns},
	} {
		cmd := g.command(append([]string{"nsenter", "-U", "--preserve-credentials", "-t", g.pid, filepath.Join(bins, argv[0])}, argv[1:]...)...)
		var text bytes.Buffer
		cmd.Stdout, cmd.Stderr = &text, &text
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			t.Errorf("%s ended: %v\n%s", argv[0], err, &text)
			continue
		case <-time.After(3 * time.Second): // longer than the interval at which the path is checked
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("%s does not end", argv[0])
			_ = cmd.Process.Kill()
			<-done
		}
	}
}
