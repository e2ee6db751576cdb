package callers

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBuildah: a RUN step of a build has a network, by the slirp4netns found in PATH.
func TestBuildah(t *testing.T) {
	need(t, "buildah", "crun", "newuidmap", "busybox")
	u := newUser(t)
	helpers := filepath.Join(u.home, "helpers")
	u.run(filepath.Join(bins, "rootless-net"), "drop-in", "install", helpers)
	u.env = append(u.env, "PATH="+helpers+":"+os.Getenv("PATH"), "BUILDAH_ISOLATION=rootless")
	port := serveHost(t)
	context := filepath.Join(u.home, "context")
	if err := os.Mkdir(context, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := image(filepath.Join(context, "root.tar")); err != nil {
		t.Fatal(err)
	}
	file := "FROM scratch\nADD root.tar /\nRUN wget -q -O - http://" + host4 + ":" + port + "/\n"
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = u.try("buildah", "--storage-driver", "vfs", "unshare", "rm", "-rf", filepath.Join(u.home, ".local"))
	})
	out := u.run("buildah", "--storage-driver", "vfs", "bud", "--runtime", "crun", "--no-cache", context)
	expect(t, "build", out, "you are "+host4+":")
	gone(t, "slirp4netns")
}

// rootlesskit3 is where CI puts a RootlessKit of version 3, which Debian has not.
const rootlesskit3 = "../../build/callers/rootlesskit"

// kit runs a shell script under RootlessKit; when it has said "started", while is called with RootlessKit's state
// directory, and then the script's input ends.
func (u *user) kit(binary string, flags []string, script string, while func(state string)) string {
	u.Helper()
	state := filepath.Join(u.home, "k")
	argv := append([]string{binary, "--state-dir=" + state, "--copy-up=/etc"}, flags...)
	cmd := u.command(append(argv, "sh", "-c", script)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		u.Fatal(err)
	}
	out := new(strings.Builder)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	started, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf, told := make([]byte, 4096), false
		for {
			n, err := r.Read(buf)
			out.Write(buf[:n])
			if !told && strings.Contains(out.String(), "started") {
				told = true
				close(started)
			}
			if err != nil {
				return
			}
		}
	}()
	if err := cmd.Start(); err != nil {
		u.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	finish := func() error {
		in.Close()
		err := cmd.Wait()
		w.Close()
		<-done
		return err
	}
	select {
	case <-started:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		err := finish()
		u.Fatalf("%v: not started: %v\n%s", cmd.Args, err, out)
	}
	if while != nil {
		while(state)
	}
	if err := finish(); err != nil {
		u.Errorf("%v: %v\n%s", cmd.Args, err, out)
	}
	return out.String()
}

// serving is a script around a server on that port: it shows the network, asks what it is told to, and serves until its
// input ends. enter comes before each program.
func serving(t *testing.T, enter, port string, urls ...string) string {
	t.Helper()
	probe := enter + " " + self(t) + " " + probeWord
	return fmt.Sprintf("%s ip addr; cat /etc/resolv.conf; %s get %s; %s serve %s & server=$!; sleep 0.5; echo started; read x; kill $server; true",
		enter, probe, strings.Join(urls, " "), probe, port)
}

func TestRootlessKitSlirp4netns(t *testing.T) {
	need(t, "rootlesskit", "rootlessctl", "newuidmap", "ip")
	for _, driver := range []string{"builtin", "slirp4netns"} {
		t.Run(driver, func(t *testing.T) {
			u := newUser(t)
			port := serveHost(t)
			flags := []string{"--net=slirp4netns", "--slirp4netns-binary=" + filepath.Join(bins, "slirp4netns"), "--port-driver=" + driver,
				"--disable-host-loopback", "--mtu=65520"}
			out := u.kit("rootlesskit", flags, serving(t, "", "80", "http://"+host4+":"+port+"/", "http://10.0.2.2:"+port+"/"), func(state string) {
				ctl := func(args ...string) string {
					return u.run(append([]string{"rootlessctl", "--socket=" + filepath.Join(state, "api.sock")}, args...)...)
				}
				ctl("add-ports", "0.0.0.0:18080:80/tcp", "0.0.0.0:18080:80/udp")
				expect(t, "list-ports", ctl("list-ports"), "18080")
				who := "you are "
				if driver == "slirp4netns" {
					who += host4 + ":"
				}
				expect(t, "TCP", get("http://"+host4+":18080/"), who)
				expect(t, "UDP", ask(host4+":18080"), who)
				ctl("remove-ports", "1", "2")
				expect(t, "a removed port", get("http://"+host4+":18080/"), "refused")
			})
			expect(t, "rootlesskit", out, "mtu 65520", "inet 10.0.2.100/24", "nameserver 10.0.2.3", "you are "+host4+":", "network is unreachable")
			gone(t, "slirp4netns")
		})
	}
}

// TestRootlessKit3: version 3, with either helper, with IPv6, and with the network namespace beside the command's.
func TestRootlessKit3(t *testing.T) {
	need(t, "newuidmap", "ip", "nsenter")
	kit, err := filepath.Abs(rootlesskit3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kit); err != nil {
		missing(t, "no RootlessKit 3 at "+rootlesskit3+": GOBIN=… go install github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit@v3.0.1")
	}
	slirp := []string{"--net=slirp4netns", "--slirp4netns-binary=" + filepath.Join(bins, "slirp4netns")}
	pasta := []string{"--net=pasta", "--pasta-binary=" + filepath.Join(bins, "pasta"), "--port-driver=implicit"}
	for _, c := range []struct {
		name     string
		flags    []string
		implicit bool // what listens is published
		wants    []string
	}{
		{"slirp4netns", slirp, false, []string{"inet 10.0.2.100/24"}},
		{"slirp4netns, IPv6", append([]string{"--ipv6"}, slirp...), false, []string{"inet 10.0.2.100/24", "inet6 fd00::"}},
		{"slirp4netns, detached", append([]string{"--detach-netns"}, slirp...), false, []string{"inet 10.0.2.100/24"}},
		{"pasta", pasta, true, []string{"inet 10.0.2.100/24", "nameserver 10.0.2.3"}},
		{"pasta, IPv6", append([]string{"--ipv6"}, pasta...), true, []string{"inet 10.0.2.100/24", "inet6 " + host6}},
		{"pasta, detached", append([]string{"--detach-netns"}, pasta...), true, []string{"inet 10.0.2.100/24"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUser(t)
			port := serveHost(t)
			enter := ""
			if strings.Contains(c.name, "detached") {
				enter = "nsenter -n" + filepath.Join(u.home, "k", "netns")
			}
			out := u.kit(kit, append(c.flags, "--disable-host-loopback"), serving(t, enter, "18081", "http://"+host4+":"+port+"/"), func(string) {
				if !c.implicit {
					return
				}
				eventually(t, 5*time.Second, func() string {
					if out := get("http://" + host4 + ":18081/"); !strings.Contains(out, "you are "+host4+":") {
						return out
					}
					return ""
				})
				expect(t, "from the host's loopback", get("http://127.0.0.1:18081/"), "you are ")
			})
			expect(t, "rootlesskit", out, append(c.wants, "you are "+host4+":")...)
			gone(t, "slirp4netns", "pasta")
		})
	}
}
