package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/listenwatch"
	"rootlessnet/internal/nettest"
	"rootlessnet/plan"
	"rootlessnet/tap"
)

// noRoutes is a host without routes.
type noRoutes struct{}

func (noRoutes) Prefixes() ([]netip.Prefix, error) { return nil, nil }

// unconnected is a gateway that has its ports and its resolver, but no link.
func unconnected(t *testing.T, c plan.Config) (*Gateway, error) {
	t.Helper()
	c.Argv = []string{"true"}
	c.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53")} // without this the host's resolv.conf would matter
	p, err := plan.Resolve(&c, noRoutes{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{Plan: p})
	if err == nil {
		t.Cleanup(g.Close)
	}
	return g, err
}

func mapping(t *testing.T, spec string) plan.PortMapping {
	t.Helper()
	m, err := plan.ParsePortSpec(spec)
	if err != nil || len(m) != 1 {
		t.Fatalf("%s: %v, %v", spec, m, err)
	}
	return m[0]
}

// listen is a TCP listener on the host's loopback.
func listen(t *testing.T) (*net.TCPListener, uint16) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestPortsAreAllOrNothing(t *testing.T) {
	nettest.CheckLeaks(t)
	_, taken := listen(t)
	if _, err := unconnected(t, plan.Config{Publish: []string{"127.0.0.1::80", fmt.Sprintf("127.0.0.1:%d:81", taken)}}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("New with a port that is in use: %v", err)
	}
	g, err := unconnected(t, plan.Config{Publish: []string{"127.0.0.1::80/udp"}})
	if err != nil {
		t.Fatal(err)
	}
	m := mapping(t, "127.0.0.1::82")
	in := m
	in.HostPort, in.HostPortEnd = taken, taken
	if _, err := g.AddPorts([]plan.PortMapping{m, in}); !errors.Is(err, syscall.EADDRINUSE) || len(g.Ports()) != 1 {
		t.Errorf("AddPorts with a port that is in use: %v; ports %v", err, g.Ports())
	}
	added, err := g.AddPorts([]plan.PortMapping{m})
	if err != nil || len(added) != 1 || added[0].HostPort == 0 || added[0].ID <= g.Ports()[0].ID {
		t.Errorf("added %v, %v; ports %v", added, err, g.Ports())
	}
	if removed := g.RemovePorts(func(p plan.Port) bool { return p.Proto == "udp" }); len(removed) != 1 || len(g.Ports()) != 1 {
		t.Errorf("removed %v; ports %v", removed, g.Ports())
	}
}

// TestInheritedListener: a published port uses the socket that the caller has bound to the same address.
func TestInheritedListener(t *testing.T) {
	l, port := listen(t)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g, err := unconnected(t, plan.Config{Listeners: []*os.File{f}, Publish: []string{fmt.Sprintf("127.0.0.1:%d:80", port)}})
	if err != nil || len(g.Ports()) != 1 || g.Ports()[0].HostPort != port {
		t.Errorf("%v", err)
	}
}

// TestInheritedForBothFamilies: a socket on [::] without IPV6_V6ONLY serves a port that is published on every address, of both
// families; removing either removes both. A socket with IPV6_V6ONLY and a unix socket do not.
func TestInheritedForBothFamilies(t *testing.T) {
	for _, v6only := range []bool{false, true} {
		for _, proto := range []string{"tcp", "udp"} {
			f, port := inheritable(t, proto, v6only)
			u, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			uf, err := u.(*net.UnixListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer uf.Close()
			g, err := unconnected(t, plan.Config{Listeners: []*os.File{uf, f}, Publish: []string{fmt.Sprintf("%d:80/%s", port, proto)}})
			if err != nil {
				t.Fatalf("%s, v6only %v: %v", proto, v6only, err)
			}
			if len(g.Ports()) != 2 || g.Ports()[0].HostIP != netip.IPv4Unspecified() || g.Ports()[1].HostIP != netip.IPv6Unspecified() {
				t.Errorf("%s, v6only %v: ports %v", proto, v6only, g.Ports())
			}
			wantRemoved := 2
			if v6only {
				wantRemoved = 1
			}
			if removed := g.RemovePorts(func(p plan.Port) bool { return p.HostIP.Is6() }); len(removed) != wantRemoved {
				t.Errorf("%s, v6only %v: removed %v", proto, v6only, removed)
			}
		}
	}
}

// inheritable is a socket on [::] as a service manager passes it.
func inheritable(t *testing.T, proto string, v6only bool) (f *os.File, port uint16) {
	t.Helper()
	kind := unix.SOCK_STREAM
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f = os.NewFile(uintptr(fd), proto)
	t.Cleanup(func() { f.Close() })
	only := 0
	if v6only {
		only = 1
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
		t.Fatal(err)
	}
	if proto == "tcp" {
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return f, uint16(sa.(*unix.SockaddrInet6).Port)
}

// TestPublishAll: a listener inside is published on the same port of the host, or on another one if that is taken, and once.
func TestPublishAll(t *testing.T) {
	g, err := unconnected(t, plan.Config{PublishAll: true})
	if err != nil {
		t.Fatal(err)
	}
	var published []plan.PortMapping
	g.cfg.OnPublish = func(m plan.PortMapping) { published = append(published, m) }
	_, taken := listen(t)
	p := guestPort{"tcp", taken}
	if err := g.publish(p); err != nil {
		t.Fatal(err)
	}
	if err := g.publish(p); !errors.Is(err, listenwatch.ErrLater) {
		t.Errorf("published twice: %v", err)
	}
	if len(published) != 1 || published[0].HostPort == taken || published[0].GuestPort != taken || !g.Ports()[0].Auto {
		t.Errorf("OnPublish %v, ports %v", published, g.Ports())
	}
}

// fakeNamespace is the host's own namespace in place of a sandbox's: Listen binds on its loopback.
type fakeNamespace struct {
	Namespace // other methods are not called
	fail      map[uint16]error
	bound     map[uint16]string // addresses by the requested port
	onListen  func()            // called by Listen; may be nil
}

func (n *fakeNamespace) Listen(_ context.Context, proto string, ports []uint16) (files []*os.File, errs []error, err error) {
	files, errs = make([]*os.File, len(ports)), make([]error, len(ports))
	if n.onListen != nil {
		n.onListen()
	}
	for i, port := range ports {
		if errs[i] = n.fail[port]; errs[i] != nil {
			continue
		}
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		defer l.Close()
		n.bound[port] = l.Addr().String()
		files[i], errs[i] = l.(*net.TCPListener).File()
	}
	return files, errs, nil
}

func TestLoopbackForwards(t *testing.T) {
	nettest.CheckLeaks(t)
	g, err := unconnected(t, plan.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server, port := listen(t)
	forward := plan.LoopbackForward{Proto: "tcp", Port: 1000, HostPort: port}
	if _, err := g.AddLoopbackForwards(forward); err == nil {
		t.Error("a forward without a namespace")
	}
	ns := &fakeNamespace{fail: map[uint16]error{1001: syscall.EADDRINUSE}, bound: map[uint16]string{}}
	g.ns = ns
	var wrong *plan.UsageError
	if _, err := g.AddLoopbackForwards(plan.LoopbackForward{Proto: "sctp", Port: 1, HostPort: 1}); !errors.As(err, &wrong) {
		t.Errorf("SCTP: %v", err)
	}
	opened, err := g.AddLoopbackForwards(plan.LoopbackForward{Proto: "tcp", Port: 1001, HostPort: port}, forward)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "1001") || len(opened) != 1 || opened[0] != forward {
		t.Errorf("opened %v, %v", opened, err)
	}

	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "served")
	}()
	c, err := net.Dial("tcp4", ns.bound[1000])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if text, err := io.ReadAll(c); string(text) != "served" {
		t.Errorf("%q, %v", text, err)
	}
	if removed := g.RemoveLoopbackForwards(func(plan.LoopbackForward) bool { return true }); len(removed) != 1 || len(g.LoopbackForwards()) != 0 {
		t.Errorf("removed %v, left %v", removed, g.LoopbackForwards())
	}
	g.forwards.close()
	if _, err := g.AddLoopbackForwards(forward); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a forward after the end: %v", err)
	}
}

// TestLoopbackForwardsEndWhileAdding: what is added at the moment of the end is given back to the budget, which all sandboxes of
// the process share.
func TestLoopbackForwardsEndWhileAdding(t *testing.T) {
	nettest.CheckLeaks(t)
	f := forwarder.New(forwarder.Config{Budget: fdbudget.New(1000)})
	l := newLoopbackForwards(f)
	ended := make(chan struct{})
	ns := &fakeNamespace{bound: map[uint16]string{}, onListen: sync.OnceFunc(func() {
		locked := make(chan struct{})
		go func() {
			defer close(ended)
			l.mu.Lock()
			close(locked)
			end := make(chan struct{})
			go func() { defer close(end); l.close() }() // which waits for the lock before add does
			time.Sleep(100 * time.Millisecond)
			l.mu.Unlock()
			<-end
		}()
		<-locked
		time.Sleep(20 * time.Millisecond)
	})}
	_, _ = l.add(ns, []plan.LoopbackForward{{Proto: "tcp", Port: 1000, HostPort: 1}})
	<-ended
	if n := f.Budget.Taken(fdbudget.Listeners); n != 0 || len(l.list()) != 0 {
		t.Errorf("%d descriptors are taken for %v", n, l.list())
	}
}

// TestCaptureToFIFO: a FIFO without a reader is an error at once.
func TestCaptureToFIFO(t *testing.T) {
	path := t.TempDir() + "/fifo"
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	dev := nettest.NewFakeDevice(tap.Info{MTU: 1500})
	if _, err := capture(dev, path, nil); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("%v", err)
	}
}

func TestHostsFile(t *testing.T) {
	g, err := unconnected(t, plan.Config{ExtraHosts: []string{"Host.Docker.Internal:192.0.2.7", "db:host-gateway"}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(g.HostsFile("box"))
	for _, want := range []string{"192.0.2.7\tHost.Docker.Internal", "10.0.2.2\tdb", "10.0.2.2\thost.containers.internal", "10.0.2.100\tbox"} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "10.0.2.2\thost.docker.internal") {
		t.Errorf("a name of the host that --add-host replaces is there too:\n%s", text)
	}
	if text := string(g.ResolvConf()); !strings.Contains(text, "nameserver 10.0.2.2\n") || strings.Contains(text, "nameserver fd52") {
		t.Errorf("resolv.conf:\n%s", text)
	}
}
