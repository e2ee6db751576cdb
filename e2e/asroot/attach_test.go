package asroot

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
)

// patience bounds what takes milliseconds unless something is wrong.
const patience = 10 * time.Second

// namespace is a network namespace and the thread that stays in it.
type namespace struct {
	t    *testing.T
	do   chan func()
	path string
}

// newNamespace makes one and, like ip-netns(8), a file that it is found by.
func newNamespace(t *testing.T, name string) *namespace {
	t.Helper()
	n := &namespace{t: t, do: make(chan func()), path: filepath.Join(t.TempDir(), name)}
	if err := os.WriteFile(n.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), n.path, "", unix.MS_BIND, "")
		}
		made <- err
		for f := range n.do {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(n.do)
		if err := unix.Unmount(n.path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return n
}

// in runs f in the namespace.
func (n *namespace) in(f func() error) {
	n.t.Helper()
	done := make(chan error)
	n.do <- func() { done <- f() }
	if err := <-done; err != nil {
		n.t.Fatal(err)
	}
}

func up(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// TestAttachAsRoot: root connects a namespace of the machine's own user namespace. It works as for other users, the process
// that serves it has no capability left, and nothing is left at the end.
func TestAttachAsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: this needs the machine's root; `make test` as root runs it")
	}
	bin, err := filepath.Abs(os.Getenv("ROOTLESSNET_BIN"))
	if os.Getenv("ROOTLESSNET_BIN") == "" || err != nil {
		t.Fatal("ROOTLESSNET_BIN is not set: use make test")
	}
	host, there := newNamespace(t, "host"), newNamespace(t, "there")
	var server net.Listener
	host.in(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}); err != nil {
			return err
		}
		if err := up("lo"); err != nil {
			return err
		}
		if err := up("lan0", "198.51.100.1/24"); err != nil {
			return err
		}
		if err := up("lan1"); err != nil {
			return err
		}
		server, err = net.Listen("tcp", "198.51.100.1:0")
		return err
	})
	defer server.Close()
	go guest.AcceptAll(server, guest.Echo.Handle)

	ready, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	var messages strings.Builder
	cmd := exec.Command(filepath.Join(bin, "rootless-net"), "attach", "--netns", there.path, "--configure", "--ready-fd", "3", "-p", "198.51.100.1:8080:80")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &messages, &messages, []*os.File{readyW}
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
	host.in(cmd.Start) // a child is in the namespace of the thread that started it
	readyW.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	_ = ready.SetReadDeadline(time.Now().Add(patience))
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		_ = cmd.Process.Kill()
		<-ended
		t.Fatalf("it did not get ready: %v\n%s", err, messages.String())
	}

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the data plane: no %q in\n%s", line, status)
		}
	}

	exchange := func(n *namespace, addr string) (got guest.Echoed) {
		n.in(func() error {
			c, err := net.DialTimeout("tcp", addr, patience)
			if err != nil {
				return err
			}
			defer c.Close()
			got = guest.Exchange{Text: "hello"}.On(c)
			return nil
		})
		return got
	}
	hostAddr := netip.MustParseAddr("198.51.100.1")
	if got := exchange(there, server.Addr().String()); got.Outcome != guest.OK || got.Text != "hello" || got.Client.Addr() != hostAddr {
		t.Errorf("out: %+v; want the echo, and the client %v", got, hostAddr)
	}
	var inside net.Listener
	there.in(func() error { inside, err = net.Listen("tcp", ":80"); return err })
	defer inside.Close()
	go guest.AcceptAll(inside, guest.Echo.Handle)
	if got := exchange(host, "198.51.100.1:8080"); got.Outcome != guest.OK || got.Text != "hello" {
		t.Errorf("in: %+v", got)
	}

	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the end: %v\n%s", err, messages.String())
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	there.in(func() error {
		if link, err := netlink.LinkByName("eth0"); err == nil {
			t.Errorf("left behind: %v", link.Attrs().Name)
		}
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		for _, r := range rules {
			if r.Mark != 0 {
				t.Errorf("left behind: %v", r)
			}
		}
		return err
	})
}
