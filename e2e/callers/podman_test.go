package callers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pod is a user with Podman set up as the drop-in's installer says.
type pod struct{ *user }

func newPodman(t *testing.T) pod {
	t.Helper()
	need(t, "podman", "crun", "newuidmap", "busybox")
	u := newUser(t)
	helpers := filepath.Join(u.home, "helpers")
	u.run(filepath.Join(bins, "rootless-net"), "drop-in", "install", helpers)
	return newPodmanWith(u, filepath.Join(helpers, "slirp4netns"), helpers)
}

// newPodmanWith uses other helpers than ours.
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
		gone(t, "slirp4netns", "rootlessport")
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
	return p.run(append([]string{"podman", "--storage-driver", "vfs"}, args...)...)
}

// serve starts a container that serves port 80 and waits until it does.
func (p pod) serve(name string, flags ...string) {
	p.Helper()
	p.podman(append(append([]string{"run", "-d", "--name", name}, flags...), "img", "/bin/probe", probeWord, "serve", "80")...)
	eventually(p.T, 10*time.Second, func() string {
		out, _ := p.try("podman", "--storage-driver", "vfs", "exec", name, "/bin/probe", probeWord, "get", "http://127.0.0.1/")
		if !strings.Contains(out, "you are") {
			return out
		}
		return ""
	})
}

// published asks a published port from everywhere, and expects the server to have seen the real client.
func published(t *testing.T, port string) {
	t.Helper()
	eventually(t, 10*time.Second, func() string {
		if out := get("http://" + host4 + ":" + port + "/"); !strings.Contains(out, "you are "+host4+":") {
			return "TCP from an address of the host: " + out
		}
		return ""
	})
	expect(t, "TCP from the host's loopback", get("http://127.0.0.1:"+port+"/"), "you are ")
	expect(t, "UDP from an address of the host", ask(host4+":"+port), "hello, you are "+host4+":")
}

func TestPodmanDefaultNetwork(t *testing.T) {
	p := newPodman(t)
	port := serveHost(t)
	out := p.podman("run", "--rm", "img", "sh", "-c", "ip addr show tap0; cat /etc/resolv.conf; probe "+probeWord+" get http://"+host4+":"+port+"/ http://10.0.2.2:"+port+"/ http://["+host6+"]:"+port+"/")
	expect(t, "run", out, "mtu 65520", "inet 10.0.2.100/24", "inet6 fd00::", "nameserver 10.0.2.3",
		"http://"+host4+":"+port+"/: you are "+host4, "http://["+host6+"]:"+port+"/: you are ["+host6+"]", "network is unreachable")
	gone(t, "slirp4netns")
}

// TestPodmanRootlessport publishes by our rootlessport: for the container's life, restarts included.
func TestPodmanRootlessport(t *testing.T) {
	p := newPodman(t)
	p.serve("web", "-p", "18080:80", "-p", "18080:80/udp")
	published(t, "18080")
	whole := fmt.Sprintf("bulk %d bytes, <nil>; %d bytes, <nil>", bulkSize, bulkSize)
	expect(t, "into the container", bulk("http://"+host4+":18080/bulk"), whole)
	port := serveHost(t)
	expect(t, "out of the container", p.podman("exec", "web", "/bin/probe", probeWord, "bulk", "http://"+host4+":"+port+"/bulk"), whole)
	expect(t, "TCP over IPv6", get("http://["+host6+"]:18080/"), "you are ")
	out, err := p.try("podman", "--storage-driver", "vfs", "run", "--rm", "-p", "18080:80", "img", "true")
	if err == nil {
		t.Error("a port was published twice")
	}
	expect(t, "a port in use", out, "rootlessport listen tcp 0.0.0.0:18080")
	p.podman("restart", "-t", "0", "web")
	published(t, "18080")
	p.podman("rm", "-f", "-t", "0", "web")
	gone(t, "slirp4netns", "rootlessport")
}

func TestPodmanPortHandlerSlirp4netns(t *testing.T) {
	p := newPodman(t)
	p.serve("web", "--network", "slirp4netns:port_handler=slirp4netns", "-p", "18080:80", "-p", "18080:80/udp")
	published(t, "18080")
}

func TestPodmanOptions(t *testing.T) {
	p := newPodman(t)
	port := serveHost(t)
	out := p.podman("run", "--rm", "--network", "slirp4netns:cidr=10.77.0.0/24,allow_host_loopback=true,enable_ipv6=true,mtu=1400,outbound_addr="+host4,
		"img", "sh", "-c", "ip addr show tap0; cat /etc/resolv.conf; probe "+probeWord+" get http://10.77.0.2:"+port+"/ http://"+host4+":"+port+"/")
	expect(t, "run", out, "mtu 1400", "inet 10.77.0.100/24", "inet6 fd00::", "nameserver 10.77.0.3",
		"http://10.77.0.2:"+port+"/: you are 127.0.0.1", "http://"+host4+":"+port+"/: you are "+host4)
}

func TestPodmanPod(t *testing.T) {
	p := newPodman(t)
	p.podman("pod", "create", "--name", "pod", "-p", "18081:80", "-p", "18081:80/udp", "--infra-image", "img", "--infra-command", "/bin/sleep 1000")
	p.serve("web", "--pod", "pod")
	published(t, "18081")
	out := p.podman("run", "--rm", "--pod", "pod", "img", "/bin/probe", probeWord, "get", "http://127.0.0.1/")
	expect(t, "from within the pod", out, "you are 127.0.0.1")
	p.podman("pod", "rm", "-f", "-t", "0", "pod")
	gone(t, "slirp4netns", "rootlessport")
}

// TestPodmanBridge: two containers of a network find each other by name, reach the host, and are reached through a
// published port from the real client's address.
func TestPodmanBridge(t *testing.T) {
	need(t, "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns")
	p := newPodman(t)
	port := serveHost(t)
	p.podman("network", "create", "net1")
	p.serve("srv", "--network", "net1", "-p", "18080:80", "-p", "18080:80/udp")
	out := p.podman("run", "--rm", "--network", "net1", "img", "/bin/probe", probeWord, "get", "http://srv/", "http://"+host4+":"+port+"/")
	expect(t, "in the network", out, "http://srv/: you are 10.", "http://"+host4+":"+port+"/: you are "+host4)
	whole := fmt.Sprintf("bulk %d bytes, <nil>; %d bytes, <nil>", bulkSize, bulkSize)
	expect(t, "out of the network", p.podman("run", "--rm", "--network", "net1", "img", "/bin/probe", probeWord, "bulk", "http://"+host4+":"+port+"/bulk"), whole)
	published(t, "18080")
	expect(t, "into the network", bulk("http://"+host4+":18080/bulk"), whole)
	p.podman("network", "create", "net2")
	p.podman("network", "connect", "net2", "srv")
	// Podman leads the port to either network now. Over UDP the server, which has no more than a wildcard socket, may answer
	// from its address in the other.
	eventually(t, 10*time.Second, func() string {
		if out := get("http://" + host4 + ":18080/"); !strings.Contains(out, "you are "+host4+":") {
			return out
		}
		return ""
	})
	p.podman("rm", "-f", "-t", "0", "srv")
	gone(t, "slirp4netns", "rootlessport")
}

// TestPodmanKilledHelper: the container goes on without a network, and the next start has one.
func TestPodmanKilledHelper(t *testing.T) {
	p := newPodman(t)
	p.serve("web", "-p", "18080:80", "-p", "18080:80/udp")
	for _, pid := range running("slirp4netns") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	gone(t, "slirp4netns")
	p.podman("exec", "web", "/bin/probe", probeWord, "get", "http://127.0.0.1/")
	p.podman("restart", "-t", "0", "web")
	published(t, "18080")
}
