package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNested: a sandbox in a sandbox in a sandbox, each with its own runtime directory, which the others do not see.
func TestNested(t *testing.T) {
	l := newLab(t)
	run := filepath.Join(bins, "rootless-run")
	r := l.once([]string{"--name", "outer"}, run, "--name", "middle", "--", run, "--name", "inner", "--", filepath.Join(bins, "rootless-net"), "ps")
	if r.code != 0 || strings.Contains(r.stdout, "outer") || strings.Contains(r.stdout, "middle") || strings.Contains(r.stdout, "inner") {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	r = l.once(nil, "sh", "-c", run+" --name inner sleep 3 & for i in $(seq 100); do "+filepath.Join(bins, "rootless-net")+" ps | grep inner && break; sleep .1; done; kill $!; wait")
	if !strings.Contains(r.stdout, "inner") {
		t.Errorf("ps in a sandbox does not list the one inside: %s%s", r.stdout, r.stderr)
	}
	l.nothingLeft(time.Second)
}

// TestControlDirectoryIsCovered: a command that starts in the runtime directory of the sandboxes sees an empty one.
func TestControlDirectoryIsCovered(t *testing.T) {
	l := newLab(t)
	if r := l.once(nil, "true"); r.code != 0 { // makes the directory
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	cmd := l.command("rootless-run", "--", "ls", "-a")
	cmd.Dir = filepath.Join(l.runtime, "rootless-run")
	if r := l.finish(cmd); r.code != 0 || r.stdout != ".\n..\n" {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

// TestNames: the options for names and name servers are written to /etc/hosts and /etc/resolv.conf.
func TestNames(t *testing.T) {
	l := newLab(t)
	hosts := l.once([]string{"--add-host", "host.docker.internal:192.0.2.7", "--add-host", "host.containers.internal:host-gateway"}, "cat", "/etc/hosts").stdout
	if strings.Count(hosts, "host.docker.internal") != 1 || !strings.Contains(hosts, "192.0.2.7\thost.docker.internal") {
		t.Errorf("a name of the host with another address:\n%s", hosts)
	}
	if strings.Count(hosts, gateway4.String()+"\thost.containers.internal") != 1 {
		t.Errorf("a name of the host with its usual address:\n%s", hosts)
	}
	if got := l.once([]string{"--dns-search", "."}, "cat", "/etc/resolv.conf").stdout; strings.Contains(got, "search") || !strings.Contains(got, "nameserver") {
		t.Errorf("without search domains:\n%s", got)
	}
	got := l.once([]string{"--network", "none", "--dns", "192.0.2.53", "--dns-search", "corp.test", "--dns-opt", "ndots:3"}, "cat", "/etc/resolv.conf").stdout
	for _, want := range []string{"nameserver 192.0.2.53\n", "search corp.test\n", "options ndots:3\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("without a network, no %q:\n%s", want, got)
		}
	}
}

// TestNoIPv6: with --ipv6=false the link has not even a link-local address.
func TestNoIPv6(t *testing.T) {
	l := newLab(t)
	if r := l.once([]string{"--ipv6=false"}, "cat", "/proc/net/if_inet6"); strings.Contains(r.stdout, "eth0") {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
}

// TestCaptureToFIFO: a FIFO without a reader is an error; the program does not wait for a reader.
func TestCaptureToFIFO(t *testing.T) {
	l := newLab(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if r := l.once([]string{"--pcap", fifo}, "true"); r.code != 125 || !strings.Contains(r.stderr, "packet capture") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if _, err := os.Stat(fifo); err != nil {
		t.Error(err)
	}
}
