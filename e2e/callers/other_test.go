package callers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/skip"
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
	file := "FROM scratch\nADD root.tar /\nRUN wget -q -O - " + url(host4, port) + "\n"
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = u.try("buildah", "--storage-driver", "vfs", "unshare", "rm", "-rf", filepath.Join(u.home, ".local"))
	})
	out := u.run("buildah", "--storage-driver", "vfs", "bud", "--runtime", "crun", "--no-cache", context)
	expect(t, "build", out, "you are "+host4+":")
	noneLeft(t, "slirp4netns")
}

// rootlesskit3 is where CI puts a RootlessKit of version 3, which Debian has not.
const rootlesskit3 = "../../build/callers/rootlesskit"

// kit runs an agent under RootlessKit, with enter before its command line, and returns it with RootlessKit's state directory.
func (u *user) kit(binary string, flags []string, enter ...string) (a *agent, state string) {
	u.Helper()
	state = filepath.Join(u.home, "k")
	argv := append([]string{binary, "--state-dir=" + state, "--copy-up=/etc"}, flags...)
	argv = append(append(append(argv, enter...), self(u.T)), guest.AgentCommand()...)
	return u.agent(argv...), state
}

// wantEnd expects that RootlessKit ends with status 0 when its command has ended.
func (a *agent) wantEnd() {
	a.Helper()
	if err := a.end(); err != nil {
		a.Errorf("%v: %v\n%s", a.cmd.Args, err, &a.stderr)
	}
}

func TestRootlessKitSlirp4netns(t *testing.T) {
	need(t, "rootlesskit", "rootlessctl", "newuidmap", "ip")
	for _, driver := range []string{"builtin", "slirp4netns"} {
		t.Run(driver, func(t *testing.T) {
			u := newUser(t)
			port := serveHost(t)
			flags := []string{"--net=slirp4netns", "--slirp4netns-binary=" + filepath.Join(bins, "slirp4netns"), "--port-driver=" + driver,
				"--disable-host-loopback", "--mtu=65520"}
			a, state := u.kit("rootlesskit", flags)
			expect(t, "the network", a.sh("ip addr; cat /etc/resolv.conf"), "mtu 65520", "inet 10.0.2.100/24", "nameserver 10.0.2.3")
			wantSeen(t, "the host", a.get(url(host4, port)), host4)
			wantOutcome(t, "the host's loopback", a.get(url("10.0.2.2", port)), guest.NetUnreachable)
			do(a, guest.ServeHTTP{Port: 80})
			ctl := func(args ...string) string {
				return u.run(append([]string{"rootlessctl", "--socket=" + filepath.Join(state, "api.sock")}, args...)...)
			}
			ctl("add-ports", "0.0.0.0:18080:80/tcp", "0.0.0.0:18080:80/udp")
			expect(t, "list-ports", ctl("list-ports"), "18080")
			client := "" // RootlessKit's own driver shows an address of its own
			if driver == "slirp4netns" {
				client = host4
			}
			wantSeen(t, "TCP", get(host4, 18080), client)
			wantUDPSeen(t, "UDP", ask(host4, 18080), client)
			ctl("remove-ports", "1", "2")
			wantOutcome(t, "a removed port", get(host4, 18080), guest.Refused)
			a.wantEnd()
			noneLeft(t, "slirp4netns")
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
		skip.Missing(t, "no RootlessKit 3 at %v: GOBIN=… go install github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit@v3.0.1", rootlesskit3)
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
			var enter []string
			if strings.Contains(c.name, "detached") {
				enter = []string{"nsenter", "-n" + filepath.Join(u.home, "k", "netns")}
			}
			a, _ := u.kit(kit, append(c.flags, "--disable-host-loopback"), enter...)
			expect(t, "the network", a.sh("ip addr; cat /etc/resolv.conf"), c.wants...)
			wantSeen(t, "the host", a.get(url(host4, port)), host4)
			do(a, guest.ServeHTTP{Port: 18081})
			if c.implicit {
				soonSeen(t, 5*time.Second, host4, func() guest.HTTPAnswer { return get(host4, 18081) })
				wantSeen(t, "from the host's loopback", get("127.0.0.1", 18081), "")
			}
			a.wantEnd()
			noneLeft(t, "slirp4netns", "pasta")
		})
	}
}
