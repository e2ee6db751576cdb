package callers

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/guest"
)

// pod is a user with Podman configured as the drop-in's installer prints it.
type pod struct{ *user }

func newPodman(t *testing.T) pod {
	t.Helper()
	need(t, "podman", "crun", "newuidmap", "busybox")
	u := newUser(t)
	helpers := filepath.Join(u.home, "helpers")
	u.run(filepath.Join(bins, "rootless-net"), "drop-in", "install", helpers)
	return newPodmanWith(u, filepath.Join(helpers, "slirp4netns"), helpers)
}

// newPodmanWith configures Podman with the helpers at those paths.
func newPodmanWith(u *user, slirp4netns, helpers string) pod {
	t := u.T
	t.Helper()
	conf := filepath.Join(u.home, "containers.conf")
	text := fmt.Sprintf("[engine]\nruntime = \"crun\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nnetwork_cmd_path = %q\n"+
		"helper_binaries_dir = [%q, \"/usr/lib/podman\", \"/usr/libexec/podman\"]\n[containers]\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n",
		slirp4netns, helpers)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	u.env = append(u.env, "CONTAINERS_CONF="+conf)
	p := pod{u}
	t.Cleanup(func() {
		_, _ = p.try("podman", "--storage-driver", "vfs", "pod", "rm", "-af", "-t", "0")
		_, _ = p.try("podman", "--storage-driver", "vfs", "rm", "-af", "-t", "0")
		noneLeft(t, "slirp4netns", "rootlessport")
		_, _ = p.try("podman", "--storage-driver", "vfs", "rmi", "-af")
		// Files of other ids can be removed only in the user namespace that has them.
		_, _ = p.try("podman", "--storage-driver", "vfs", "unshare", "rm", "-rf", filepath.Join(p.home, ".local"))
		p.endPause()
	})
	tarball := filepath.Join(u.home, "image.tar")
	if err := image(tarball); err != nil {
		t.Fatal(err)
	}
	p.podman("import", tarball, "img")
	return p
}

// endPause ends the process that keeps Podman's namespaces.
func (p pod) endPause() {
	text, err := os.ReadFile(filepath.Join(p.runtime, "libpod/tmp/pause.pid"))
	var pid int
	if err == nil {
		if _, err := fmt.Sscan(string(text), &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (p pod) podman(args ...string) string {
	p.Helper()
	return p.run(podmanWords(args...)...)
}

// serve starts a container that serves port 80 and waits until it does.
func (p pod) serve(name string, flags ...string) {
	p.Helper()
	server := append([]string{"img", containerProgram}, guest.Command(guest.ServeHTTP{Port: 80})...)
	p.podman(append(append([]string{"run", "-d", "--name", name}, flags...), server...)...)
	eventually(p.T, 10*time.Second, func() string {
		got, err := tryOnce(p.user, guest.GetHTTP{URL: "http://127.0.0.1/"}, podmanWords("exec", name, containerProgram)...)
		if err != nil {
			return err.Error()
		}
		return notSeen(got, "")
	})
}

// podmanWords is a command line of Podman.
func podmanWords(args ...string) []string {
	return append([]string{"podman", "--storage-driver", "vfs"}, args...)
}

// container runs an agent in a container of its own, which is removed when the agent ends.
func (p pod) container(flags ...string) *agent {
	p.Helper()
	argv := append(append(podmanWords("run", "--rm", "-i"), flags...), "img", containerProgram)
	return p.agent(append(argv, guest.AgentCommand()...)...)
}

// published connects to a published port from an address of the host and from its loopback, and expects the server to have seen
// the client's own address.
func published(t *testing.T, port uint16) {
	t.Helper()
	soonSeen(t, 10*time.Second, host4, func() guest.HTTPAnswer { return get(host4, port) })
	wantSeen(t, "TCP from the host's loopback", get("127.0.0.1", port), "")
	wantUDPSeen(t, "UDP from an address of the host", ask(host4, port), host4)
}

func TestPodmanDefaultNetwork(t *testing.T) {
	p := newPodman(t)
	port := serveHost(t)
	a := p.container()
	expect(t, "the network", a.sh("ip addr show tap0; cat /etc/resolv.conf"), "mtu 65520", "inet 10.0.2.100/24", "inet6 fd00::", "nameserver 10.0.2.3")
	wantSeen(t, "the host", a.get(url(host4, port)), host4)
	wantSeen(t, "the host, by IPv6", a.get(url(host6, port)), host6)
	wantOutcome(t, "the host's loopback", a.get(url("10.0.2.2", port)), guest.NetUnreachable)
	a.wantEnd()
	noneLeft(t, "slirp4netns")
}

// TestPodmanRootlessport publishes by our rootlessport: as long as the container exists, restarts included.
func TestPodmanRootlessport(t *testing.T) {
	p := newPodman(t)
	p.serve("web", "-p", "18080:80", "-p", "18080:80/udp")
	published(t, 18080)
	wantBulk(t, "into the container", moveBulk(host4, 18080))
	port := serveHost(t)
	wantBulk(t, "out of the container", once(p.user, guest.MoveBulk{Server: guest.Target{Host: host4, Port: port}}, podmanWords("exec", "web", containerProgram)...))
	wantSeen(t, "TCP over IPv6", get(host6, 18080), "")
	out, err := p.try("podman", "--storage-driver", "vfs", "run", "--rm", "-p", "18080:80", "img", "true")
	if err == nil {
		t.Error("a port was published twice")
	}
	expect(t, "a port in use", out, "rootlessport listen tcp 0.0.0.0:18080")
	p.podman("restart", "-t", "0", "web")
	published(t, 18080)
	p.podman("rm", "-f", "-t", "0", "web")
	noneLeft(t, "slirp4netns", "rootlessport")
}

func TestPodmanPortHandlerSlirp4netns(t *testing.T) {
	p := newPodman(t)
	p.serve("web", "--network", "slirp4netns:port_handler=slirp4netns", "-p", "18080:80", "-p", "18080:80/udp")
	published(t, 18080)
}

func TestPodmanOptions(t *testing.T) {
	p := newPodman(t)
	port := serveHost(t)
	a := p.container("--network", "slirp4netns:cidr=10.77.0.0/24,allow_host_loopback=true,enable_ipv6=true,mtu=1400,outbound_addr="+host4)
	expect(t, "the network", a.sh("ip addr show tap0; cat /etc/resolv.conf"), "mtu 1400", "inet 10.77.0.100/24", "inet6 fd00::", "nameserver 10.77.0.3")
	wantSeen(t, "the host's loopback", a.get(url("10.77.0.2", port)), "127.0.0.1")
	wantSeen(t, "the host", a.get(url(host4, port)), host4)
	a.wantEnd()
}

func TestPodmanPod(t *testing.T) {
	p := newPodman(t)
	p.podman("pod", "create", "--name", "pod", "-p", "18081:80", "-p", "18081:80/udp", "--infra-image", "img", "--infra-command", "/bin/sleep 1000")
	p.serve("web", "--pod", "pod")
	published(t, 18081)
	got := once(p.user, guest.GetHTTP{URL: "http://127.0.0.1/"}, podmanWords("run", "--rm", "--pod", "pod", "img", containerProgram)...)
	wantSeen(t, "from within the pod", got, "127.0.0.1")
	p.podman("pod", "rm", "-f", "-t", "0", "pod")
	noneLeft(t, "slirp4netns", "rootlessport")
}

// TestPodmanBridge: two containers of a network find each other by name, reach the host, and are reached through a
// published port from the real client's address.
func TestPodmanBridge(t *testing.T) {
	need(t, "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns")
	p := newPodman(t)
	port := serveHost(t)
	p.podman("network", "create", "net1")
	p.serve("srv", "--network", "net1", "-p", "18080:80", "-p", "18080:80/udp")
	a := p.container("--network", "net1")
	wantSeen(t, "a container of the network, by name", a.get("http://srv/"), "")
	wantSeen(t, "the host", a.get(url(host4, port)), host4)
	wantBulk(t, "out of the network", do(a, guest.MoveBulk{Server: guest.Target{Host: host4, Port: port}}))
	a.wantEnd()
	published(t, 18080)
	wantBulk(t, "into the network", moveBulk(host4, 18080))
	p.podman("network", "create", "net2")
	p.podman("network", "connect", "net2", "srv")
	// Podman forwards the port to either network now. Over UDP the server, which has only a wildcard socket, may answer from
	// its address in the other.
	soonSeen(t, 10*time.Second, host4, func() guest.HTTPAnswer { return get(host4, 18080) })
	p.podman("rm", "-f", "-t", "0", "srv")
	noneLeft(t, "slirp4netns", "rootlessport")
}

// TestPodmanKilledHelper: the container goes on without a network, and the next start has one.
func TestPodmanKilledHelper(t *testing.T) {
	p := newPodman(t)
	p.serve("web", "-p", "18080:80", "-p", "18080:80/udp")
	for _, pid := range running("slirp4netns") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	noneLeft(t, "slirp4netns")
	wantSeen(t, "the container's loopback", once(p.user, guest.GetHTTP{URL: "http://127.0.0.1/"}, podmanWords("exec", "web", containerProgram)...), "")
	p.podman("restart", "-t", "0", "web")
	published(t, 18080)
}
