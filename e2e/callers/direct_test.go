package callers

import (
	"bufio"
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
		gone(t, "slirp4netns", "pasta")
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
	out, _ := g.try(append([]string{"nsenter", "-U", "--preserve-credentials", "-n", "-t", g.pid}, argv...)...)
	return out
}

func (g target) get(urls ...string) string {
	g.Helper()
	return g.in(append([]string{self(g.T), probeWord, "get"}, urls...)...)
}

// helper starts cmd with an exit and a ready descriptor, 3 and 4, and returns the other end of each, and what it says.
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

// slirp starts slirp4netns and returns when it says that it is ready; end closes its exit descriptor and returns the
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

// TestSlirp4netns: what the original's users see in the namespace, and the end by the exit descriptor.
func TestSlirp4netns(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	socket := filepath.Join(g.home, "s")
	end := g.slirp("-c", "-6", "--mtu=9000", "-a", socket, g.pid, "tap0")
	expect(t, "the interface", g.in("ip", "addr"), "mtu 9000", "inet 10.0.2.100/24", "inet6 fd00::")
	expect(t, "routes", g.in("ip", "route"), "default via 10.0.2.2 dev tap0")
	expect(t, "the host's loopback", g.get("http://10.0.2.2:"+port+"/"), "you are 127.0.0.1")
	expect(t, "an address that nobody has", g.get("http://10.0.2.77:"+port+"/"), "no route to host")
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

// TestSlirp4netnsClosed: the words of connect for what is closed.
func TestSlirp4netnsClosed(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	end := g.slirp("-c", "--disable-host-loopback", "--disable-dns", g.pid, "tap0")
	out := g.get("http://10.0.2.2:"+port+"/", "http://10.0.2.77:"+port+"/", "http://10.0.2.3:53/")
	expect(t, "connect", out, "10.0.2.2:"+port+": connect: network is unreachable", "10.0.2.77:"+port+": connect: no route to host")
	if !strings.Contains(out, "deadline exceeded") && !strings.Contains(out, "timeout") {
		t.Errorf("the name server that is off answers:\n%s", out)
	}
	if out := g.in("ip", "-6", "addr", "show", "dev", "tap0", "scope", "global"); strings.Contains(out, "inet6") {
		t.Errorf("IPv6 without being asked for:\n%s", out)
	}
	// A second helper in the same namespace, after the first.
	if err := end(); err != nil {
		t.Error(err)
	}
	end = g.slirp("-c", "--netns-type=path", "/proc/"+g.pid+"/ns/net", "tap0")
	expect(t, "the second one", g.get("http://"+host4+":"+port+"/"), "you are "+host4)
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestPastaProcess: the first process ends when everything is there, with the pid file; the second with the namespace.
func TestPastaProcess(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	pidFile := filepath.Join(g.home, "pid")
	out := g.run(filepath.Join(bins, "pasta"), "--config-net", "-t", "18082:80", "-u", "18082:80", "-T", "none", "-U", "none", "--pid", pidFile,
		"--map-guest-addr", "169.254.1.2", "--dns-forward", "169.254.1.1", g.pid)
	if out != "" {
		t.Errorf("it said %q", out)
	}
	text, err := os.ReadFile(pidFile)
	if pid, cerr := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || cerr != nil || !strings.Contains(fmt.Sprint(running("pasta")), strconv.Itoa(pid)) {
		t.Errorf("pid file %q, %v; running %v", text, err, running("pasta"))
	}
	expect(t, "the interface", g.in("ip", "addr", "show", "lan0"), "inet "+host4+"/24", "inet6 "+host6+"/64")
	expect(t, "routes", g.in("ip", "route"), "default via 198.51.100.254 dev lan0")
	expect(t, "mapped addresses", g.get("http://169.254.1.2:"+port+"/", "http://198.51.100.254:"+port+"/"),
		"http://169.254.1.2:"+port+"/: you are", "http://198.51.100.254:"+port+"/: you are 127.0.0.1")
	server := g.command("nsenter", "-U", "--preserve-credentials", "-n", "-t", g.pid, self(t), probeWord, "serve", "80")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	eventually(t, 5*time.Second, func() string {
		if out := get("http://" + host4 + ":18082/"); !strings.Contains(out, "you are") {
			return out
		}
		return ""
	})
	expect(t, "UDP", ask(host4+":18082"), "hello, you are")
}

// TestPastaForPodman: the words of Podman 5, in the namespaces it makes: root of a user namespace, whose mounts hold the
// network namespace. Addresses are there when the first process ends; the second ends when the path is detached and removed.
func TestPastaForPodman(t *testing.T) {
	need(t, "unshare", "nsenter", "ip")
	u := newUser(t)
	port := serveHost(t)
	for gateway, wants := range map[string][]string{
		"--no-map-gw": {"inet " + host4 + "/24", "inet6 " + host6 + "/64", "default via 198.51.100.254 dev lan0", "http://169.254.1.2:" + port + "/: you are " + host4},
		"":            {"http://198.51.100.254:" + port + "/: you are 127.0.0.1"}, // "--network pasta:--map-gw"
	} {
		host := "169.254.1.2"
		if gateway == "" {
			host = "198.51.100.254"
		}
		script := fmt.Sprintf(`set -e
touch ns
unshare -n mount --bind /proc/self/ns/net ns
%s/pasta --config-net -t 18083-18083:80-80 -u 18083-18083:80-80 --dns-forward 169.254.1.1 -T none -U none %s --quiet --netns "$PWD/ns" --map-guest-addr 169.254.1.2
in="nsenter --net=ns"
$in ip addr; $in ip route
$in %s %s get http://%s:%s/
$in %s %s serve 80 & server=$!
echo started; read line
kill $server; umount -l ns; rm ns`,
			bins, gateway, self(t), probeWord, host, port, self(t), probeWord)
		cmd := u.command("unshare", "-Urm", "sh", "-c", script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out := new(bytes.Buffer)
		r, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(r)
		text := until(t, lines, "started")
		expect(t, "with "+gateway, text, wants...)
		eventually(t, 5*time.Second, func() string {
			if got := get("http://" + host4 + ":18083/"); !strings.Contains(got, "you are 198.51.100.254:") {
				return got
			}
			return ""
		})
		expect(t, "UDP", ask(host4+":18083"), "hello, you are 198.51.100.254:")
		fmt.Fprintln(in)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		timer.Stop()
		gone(t, "pasta")
	}
}

// TestPastaCommand: a command gets the network and its status comes back.
func TestPastaCommand(t *testing.T) {
	need(t, "ip")
	u := newUser(t)
	port := serveHost(t)
	pasta := filepath.Join(bins, "pasta")
	none := []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none"}
	out := u.run(append(append([]string{pasta, "--config-net"}, none...), "sh", "-c", "id -u; ip addr; "+self(t)+" "+probeWord+" get http://198.51.100.254:"+port+"/")...)
	expect(t, "a command", out, "0\n", "inet "+host4+"/24", "you are 127.0.0.1")
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
	gone(t, "pasta")
}

// TestPastaPortInUse: the first process says so and fails.
func TestPastaPortInUse(t *testing.T) {
	g := newTarget(t)
	port := serveHost(t)
	out, err := g.try(filepath.Join(bins, "pasta"), "--config-net", "-t", port, "-u", "none", "-T", "none", "-U", "none", g.pid)
	if _, ok := err.(*exec.ExitError); !ok {
		t.Errorf("it did not fail: %v", err)
	}
	expect(t, "the error", out, port)
	gone(t, "pasta")
}

// TestByPathAsRootInside: Podman's way to start a helper. Without its capabilities the helper cannot look at the path of a
// process any more, which is no reason to end.
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
		case <-time.After(3 * time.Second): // longer than it takes to look again
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
