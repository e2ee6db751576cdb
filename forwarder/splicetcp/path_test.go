package splicetcp

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// roadWorld is a kernel's road in the namespace it serves, see enterNetns: the "guest" is on here4, and comes to the
// listener, on other4, by itself, as the packet socket sends nothing. What it wants of other4 is the loopback's.
type roadWorld struct {
	*testing.T
	*Streams
	listener netip.AddrPort
	remote   *net.TCPListener
}

// plainMint makes sockets that need no privilege.
type plainMint struct{}

func (plainMint) Get(_, _ bool) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return fd, err
}

func (plainMint) Close() {}

func newRoadWorld(t *testing.T) *roadWorld {
	t.Helper()
	if enterNetns(t) == nil {
		return nil
	}
	w := &roadWorld{T: t}
	l := roadListen(t, netip.AddrPortFrom(other4, 0).String())
	w.listener = l.Addr().(*net.TCPAddr).AddrPort()
	w.remote = roadListen(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), w.listener.Port()).String())
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	w.Streams = NewStreams(StreamsConfig{Gateway4: other4, Guest4: here4, Policy: policy.New(policy.Config{
		Gateway4: gw4, Sources: []netip.Prefix{netip.PrefixFrom(here4, 32)},
		Special: []policy.Special{{Addr: other4, To: policy.ToHost, Host: netip.MustParseAddr("127.0.0.2")}}})})
	k := Kernel{Packets: os.NewFile(uintptr(fds[1]), "packets"), Listeners: []*os.File{lf}, Mint: plainMint{}}
	if err := w.UseKernel(k); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Streams.Close)
	return w
}

func roadListen(t *testing.T, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// syn is the guest's request from a port.
func (w *roadWorld) syn(port uint16, ttl uint8) (taken bool) {
	return w.HandleSYN(&stack.SYN{Flow: stack.Flow{Src: netip.AddrPortFrom(here4, port), Dst: w.listener}, TTL: ttl, Frame: make([]byte, 54)})
}

// come connects to the listener from a port; 0 is any.
func (w *roadWorld) come(port uint16) net.Conn {
	w.Helper()
	return call(w.T, netip.AddrPortFrom(here4, port), w.listener)
}

func (w *roadWorld) wait(what string, ok func(s StreamStats) bool) {
	w.Helper()
	eventually(w.T, what, func() bool { return ok(w.Stats()) })
}

// freePort is one that the guest may connect from.
func (w *roadWorld) freePort() uint16 {
	l, err := net.Listen("tcp", netip.AddrPortFrom(here4, 0).String())
	if err != nil {
		w.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestKernelRoadOffer(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	port := w.freePort()
	if !w.syn(port, guestTTL) {
		t.Fatal("the request was left to the stack")
	}
	if stray, err := net.Dial("tcp", w.listener.String()); err == nil { // or the reset was there first
		hearReset(t, stray)
		stray.Close()
	}
	c := w.come(port)
	defer c.Close()
	h, err := w.remote.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	say(t, c, "request")
	hear(t, h, "request")
	say(t, h, "answer")
	hear(t, c, "answer")
	w.wait("counted", func(s StreamStats) bool {
		return s.Spliced == 1 && s.Outbound == 1 && s.Strays == 1 && s.Dialling == 0
	})
	c.Close()
	if _, err := io.ReadAll(h); err != nil {
		t.Error(err)
	}
}

// TestKernelRoadNotForwarded: what comes through the guest, from further inside, has one hop less to live. It is left to the
// stack where the namespace cannot be made ready for it.
func TestKernelRoadNotForwarded(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	for _, ttl := range []uint8{1, 63, 65, 127, 255} {
		if w.syn(w.freePort(), ttl) {
			t.Errorf("a request with TTL %d was taken", ttl)
		}
	}
	if s := w.Stats(); s.Dialling != 0 || len(w.kernel.requests) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestKernelRoadBounded: offers that nobody takes up hold a descriptor each.
func TestKernelRoadBounded(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	w.kernel.most = 3
	for i := range uint16(5) {
		if taken := w.syn(20000+i, guestTTL); taken != (i < 3) {
			t.Errorf("request %d: taken %v", i, taken)
		}
	}
	if s := w.Stats(); s.Dialling != 0 {
		t.Errorf("%d dials are still counted", s.Dialling)
	}
	w.kernel.mu.Lock()
	for _, q := range w.kernel.requests {
		q.since = q.since.Add(-time.Hour)
	}
	w.kernel.mu.Unlock()
	w.kernel.sweep()
	if s := w.Stats(); s.Unanswered != 3 || w.kernel.offered != 0 || len(w.kernel.requests) != 0 {
		t.Errorf("after the sweep: %+v, %d offered", s, w.kernel.offered)
	}
}

// TestKernelRoadDoubt: a guest whose rules are in the way pays for three connections, not for each.
func TestKernelRoadDoubt(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	for i := range uint16(doubtAfter) {
		if !w.syn(20000+i, guestTTL) {
			t.Fatalf("request %d was left to the stack", i)
		}
		if w.syn(20000+i, guestTTL) {
			t.Fatalf("request %d, sent again, was taken", i)
		}
	}
	if w.syn(21000, guestTTL) {
		t.Error("the next is tried all the same")
	}
	w.kernel.mu.Lock()
	w.kernel.doubt.until = time.Now()
	w.kernel.mu.Unlock()
	port := w.freePort()
	if !w.syn(port, guestTTL) {
		t.Fatal("later, none is tried")
	}
	c := w.come(port)
	defer c.Close()
	w.wait("joined", func(s StreamStats) bool { return s.Spliced == 1 })
	if w.kernel.mu.Lock(); w.kernel.doubt.row != 0 {
		t.Error("it is not forgotten")
	}
	w.kernel.mu.Unlock()
}

// TestKernelRoadClosed: what is on its way when the road is closed leaves no descriptor and no timer that does harm.
func TestKernelRoadClosed(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	w.syn(20000, guestTTL)
	h, err := w.remote.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	w.kernel.mu.Lock()
	w.kernel.pause()
	w.kernel.mu.Unlock()
	w.Streams.Close()
	hearReset(t, h)
	if !w.syn(20001, guestTTL) {
		t.Error("a request after Close goes on to the stack")
	}
	w.kernel.endPause()
	w.kernel.sweep()
}

// TestKernelRoadSameClientPort: two addresses of the host's loopback are one inside, and may use the same port.
func TestKernelRoadSameClientPort(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	inside := roadListen(t, netip.AddrPortFrom(here4, 0).String())
	p, err := w.Publish(roadListen(t, "127.0.0.1:0"), inside.Addr().(*net.TCPAddr).AddrPort().Port())
	if err != nil {
		t.Fatal(err)
	}
	port := w.freePort()
	seen := map[string]bool{}
	for _, client := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		c := call(t, netip.AddrPortFrom(netip.MustParseAddr(client), port), p.Addr())
		defer c.Close()
		in, err := inside.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		say(t, c, client)
		hear(t, in, client)
		seen[in.RemoteAddr().String()] = true
	}
	if !seen[netip.AddrPortFrom(other4, port).String()] || len(seen) != 3 {
		t.Errorf("inside they are %v", seen)
	}
	for _, f := range w.Flows() {
		if f.Flow.Src.Port() == 0 {
			t.Errorf("a flow without a port: %v", f.Flow)
		}
	}
	w.wait("joined", func(s StreamStats) bool { return s.Spliced == 3 && s.Inbound == 3 })
}

// TestKernelRoadNoDescriptors: a connection that cannot be accepted waits; nobody is told of it without end.
func TestKernelRoadNoDescriptors(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	c, err := plainMint{}.Get(false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := rawsock.Bind(c, netip.AddrPortFrom(here4, 0)); err != nil {
		t.Fatal(err)
	}
	if !w.syn(rawsock.LocalAddr(c).Port(), guestTTL) {
		t.Fatal("the request was left to the stack")
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	few := lim
	few.Cur = 3 // less than are open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	const while = 5 * acceptPause
	if err := rawsock.Connect(c, w.listener); err != nil && err != unix.EINPROGRESS {
		t.Error(err)
	}
	time.Sleep(while)
	n := w.Stats().AcceptErrors
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if n == 0 || n > uint64(while/acceptPause)+1 {
		t.Errorf("accept was tried %d times in %v", n, while)
	}
	w.wait("joined", func(s StreamStats) bool { return s.Spliced == 1 })
}
