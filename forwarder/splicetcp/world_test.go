package splicetcp

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/spin"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// world is a splice path in the namespace that it serves, see forwardlab.EnterNetns. The packet socket sends nothing: the
// test itself is the guest's kernel. The guest has the address Here4 and connects to the listener, on Other4, which is
// used for every remote address; the policy has the host connect to hostAddr, with the same port, instead.
type world struct {
	testing.TB
	*Path
	budget    *fdbudget.Budget
	policy    *policy.Live
	rules     policy.Config // those in force
	stopped   sync.Once
	pool      plainPool
	listener  netip.AddrPort
	remote    *net.TCPListener // of the host, with the port of listener
	listeners []netip.AddrPort // further ones, for tests that need several destinations
}

// hostAddr is where the host's servers listen.
var hostAddr = netip.MustParseAddr("127.0.0.2")

// plainPool makes sockets that need no privilege, or none.
type plainPool struct{ empty atomic.Bool }

func (p *plainPool) Get(_, _ bool) (int, error) {
	if p.empty.Load() {
		return -1, unix.EAGAIN
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return fd, err
}

func (*plainPool) Close() {}

// newWorld is nil on the outside of the namespace. It checks at the end that nothing is left behind.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newLimitedWorld(t, forwardlab.Limit)
}

// newLimitedWorld is newWorld with a limit of descriptors.
func newLimitedWorld(t *testing.T, limit int64) *world {
	t.Helper()
	if forwardlab.EnterNetns(t) == nil {
		return nil
	}
	return newWorldInside(t, limit, 0)
}

// newWorldInside is for tests that are in the namespace already. further is the number of world.listeners.
func newWorldInside(t testing.TB, limit int64, further int) *world {
	t.Helper()
	nettest.CheckLeaks(t)
	w := &world{TB: t, budget: forwardlab.Budget(t, limit)}
	var files []*os.File
	listen := func() netip.AddrPort {
		l := forwardlab.Listen(t, netip.AddrPortFrom(forwardlab.Other4, 0).String())
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	w.listener = listen()
	for range further {
		w.listeners = append(w.listeners, listen())
	}
	w.remote = forwardlab.Listen(t, netip.AddrPortFrom(hostAddr, w.listener.Port()).String())
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	w.rules = policy.Config{Gateway4: forwardlab.Gateway4, Sources: []netip.Prefix{netip.PrefixFrom(forwardlab.Here4, 32)},
		Special: []policy.Special{{Addr: forwardlab.Other4, To: policy.ToHost, Host: hostAddr}}}
	w.policy = policy.NewLive(w.rules)
	f := forwardlab.NewForwarder(t, forwarder.Config{Budget: w.budget})
	f.AddEndpoint(forwarder.EndpointConfig{Policy: w.policy, Addresses: forwarder.Addresses{Gateway4: forwardlab.Other4, Guest4: forwardlab.Here4}})
	w.Path, err = New(f, Inside{Packets: os.NewFile(uintptr(fds[1]), "packets"), Listeners: files, Pool: &w.pool})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	return w
}

// stop closes the Path, once.
func (w *world) stop() { w.stopped.Do(w.Path.Close) }

// stats are the counters of the Path and those of the forwarder.
type stats struct {
	Stats
	forwardlab.TCPStats
}

func (w *world) Stats() stats { return stats{w.Path.Stats(), forwardlab.ReadTCP(w.f)} }

// flow is that of a request from a port.
func (w *world) flow(port uint16) stack.Flow {
	return stack.Flow{Src: netip.AddrPortFrom(forwardlab.Here4, port), Dst: w.listener}
}

// syn is the guest's request from a port.
func (w *world) syn(port uint16, ttl uint8) (taken bool) {
	return w.HandleSYN(&stack.SYN{Flow: w.flow(port), TTL: ttl, Frame: make([]byte, 54)})
}

// connect connects to the listener from a port, as the guest's kernel does when the SYN was re-injected.
func (w *world) connect(port uint16) *net.TCPConn {
	w.Helper()
	return forwardlab.Call(w.TB, netip.AddrPortFrom(forwardlab.Here4, port), w.listener)
}

// pair is one connection from the guest to the remote.
func (w *world) pair() (guest, host *net.TCPConn) {
	w.Helper()
	port := w.freePort()
	if !w.syn(port, guestTTL) {
		w.Fatal("the request was left to the stack path")
	}
	guest = w.connect(port)
	host = forwardlab.Accept(w.TB, w.remote)
	w.waitFor("the flow is in the table", func(stats) bool { return w.find(w.flow(port).Key(flow.TCP)) })
	return guest, host
}

// find reports whether the table of flows has the key.
func (w *world) find(k flow.Key) bool {
	for _, i := range w.f.Flows.List() {
		if i.Key == k {
			return true
		}
	}
	return false
}

func (w *world) waitFor(what string, ok func(s stats) bool) {
	w.Helper()
	forwardlab.Eventually(w.TB, what, func() bool { return ok(w.Stats()) })
}

// freePort is one that the guest may connect from.
func (w *world) freePort() uint16 {
	l, err := net.Listen("tcp", netip.AddrPortFrom(forwardlab.Here4, 0).String())
	if err != nil {
		w.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// publish publishes a port of the guest. fallback takes the clients that the Path declines.
func (w *world) publish(port uint16, fallback forwarder.ClientServer) *forwarder.PublishedTCP {
	w.Helper()
	p, err := w.f.PublishTCP(forwardlab.Listen(w.TB, "127.0.0.1:0"), forwarder.Target{Addr: netip.AddrPortFrom(netip.Addr{}, port)}, w.Path, fallback)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(p.Close)
	return p
}

// fallback counts the clients that the splice path has declined, and resets them.
type fallback struct{ clients chan netip.AddrPort }

func newFallback() fallback { return fallback{make(chan netip.AddrPort, 16)} }

func (s fallback) Serve(c *forwarder.Client) (spin.Result, bool) {
	s.clients <- c.Addr
	unix.Close(c.FD)
	return spin.Progress, true
}
