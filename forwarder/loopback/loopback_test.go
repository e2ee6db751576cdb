package loopback

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest"
	"rootlessnet/internal/nettest/forwardlab"
)

// testPool gives sockets of our own namespace, or none.
type testPool struct{ empty bool }

func (m *testPool) Get(ipv6, _ bool) (int, error) { return m.socket(ipv6, unix.SOCK_STREAM) }
func (m *testPool) GetUDP(ipv6 bool) (int, error) { return m.socket(ipv6, unix.SOCK_DGRAM) }
func (m *testPool) Close()                        {}

func (m *testPool) socket(ipv6 bool, kind int) (int, error) {
	if m.empty {
		return -1, errors.New("none")
	}
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// world is a Relay with its forwarder.
type world struct {
	*Relay
	budget *fdbudget.Budget
}

// newRelay forwards to a port of this host, TCP and UDP, from a socket for both families each; tcp and udp are their
// addresses.
func newRelay(t testing.TB, pool Pool, to uint16) (w *world, tcp, udp netip.AddrPort) {
	t.Helper()
	return newLimitedRelay(t, pool, to, forwardlab.Limit)
}

// newLimitedRelay is newRelay with a limit of descriptors.
func newLimitedRelay(t testing.TB, pool Pool, to uint16, limit int64) (w *world, tcp, udp netip.AddrPort) {
	t.Helper()
	nettest.CheckLeaks(t)
	w = &world{budget: forwardlab.Budget(t, limit)}
	f := forwardlab.NewForwarder(t, forwarder.Config{Budget: w.budget})
	f.AddEndpoint(forwarder.EndpointConfig{Policy: forwardlab.JudgeFunc(nil)})
	l, err := New(f, 0, pool)
	if err != nil {
		t.Fatal(err)
	}
	w.Relay = l
	t.Cleanup(func() {
		l.Close()
		if n := f.Flows.Len(); n > 0 {
			t.Errorf("%d flows are still in the table", n)
		}
	})
	stream, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	packets, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, s := range []interface{ File() (*os.File, error) }{stream.(*net.TCPListener), packets.(*net.UDPConn)} {
		f, err := s.File()
		if err == nil {
			_, err = l.Listen(f, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(a net.Addr) netip.AddrPort {
		_, port, _ := net.SplitHostPort(a.String())
		return netip.MustParseAddrPort("127.0.0.1:" + port)
	}
	return w, at(stream.Addr()), at(packets.LocalAddr())
}

// upperCaseServer answers in upper case, on one address.
func upperCaseServer(t *testing.T, addr string) (port uint16) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	t.Cleanup(func() { l.Close(); c.Close(); <-done; <-done })
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			text, _ := io.ReadAll(c)
			_, _ = c.Write([]byte(strings.ToUpper(string(text))))
			c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(strings.ToUpper(string(buf[:n]))), from)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// shout sends and returns what comes back.
func shout(network, addr, text string) (string, error) {
	c, err := net.DialTimeout(network, addr, forwardlab.Patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(forwardlab.Patience))
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
		b, err := io.ReadAll(c)
		return string(b), err
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// A client of either family finds a server of either, and so does one that sends to another address of the namespace, which
// gets its answer from that address.
func TestRelay(t *testing.T) {
	for _, server := range []string{"127.0.0.1", "::1"} {
		for _, pool := range []Pool{nil, new(testPool)} {
			l, tcp, udp := newRelay(t, pool, upperCaseServer(t, server))
			for _, client := range []string{"127.0.0.1", "::1", "127.0.0.9"} {
				for network, at := range map[string]netip.AddrPort{"tcp": tcp, "udp": udp} {
					_, port, _ := net.SplitHostPort(at.String())
					if got, err := shout(network, net.JoinHostPort(client, port), "hello"); got != "HELLO" || err != nil {
						t.Errorf("%s from %s to a server on %s: %q, %v", network, client, server, got, err)
					}
				}
			}
			if s := l.Stats(); s.Connections != 3 || s.Flows != 3 || s.Datagrams < 6 || s.Refused != 0 {
				t.Errorf("%+v", s)
			}
			l.Close()
		}
	}
}

// Nothing listens: the client is reset, and one that sent a datagram gets no answer.
func TestRelayRefused(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := gone.Addr().(*net.TCPAddr).AddrPort().Port()
	gone.Close()
	l, tcp, _ := newRelay(t, nil, port)
	if _, err := shout("tcp", tcp.String(), "hello"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	if s := l.Stats(); s.Refused != 1 || s.Connections != 0 {
		t.Errorf("%+v", s)
	}
}

// A client waits for a socket, and is reset when there is none for two seconds, or when the Relay is closed.
func TestRelayWithoutSockets(t *testing.T) {
	pool := &testPool{empty: true}
	l, tcp, _ := newRelay(t, pool, upperCaseServer(t, "127.0.0.1"))
	c, err := net.Dial("tcp", tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waiting := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waits)
	}
	for deadline := time.Now().Add(forwardlab.Patience); waiting() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client does not wait")
		}
	}
	l.mu.Lock()
	pool.empty = false
	l.mu.Unlock()
	_, _ = c.Write([]byte("late"))
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.SetDeadline(time.Now().Add(forwardlab.Patience))
	if text, err := io.ReadAll(c); string(text) != "LATE" {
		t.Errorf("%q, %v", text, err)
	}
}

// Connections outlive their port; flows of datagrams do not. The end of the Relay resets them.
func TestRelayPortCloses(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l, tcp, _ := newRelay(t, nil, server.Addr().(*net.TCPAddr).AddrPort().Port())
	c, err := net.Dial("tcp", tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l.mu.Lock()
	var ports []*Port
	for p := range l.ports {
		ports = append(ports, p)
	}
	l.mu.Unlock()
	for _, p := range ports {
		p.Close()
		p.Close() // again
	}
	if _, err := net.Dial("tcp", tcp.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v", err)
	}
	_, _ = c.Write([]byte("x"))
	_ = s.SetDeadline(time.Now().Add(forwardlab.Patience))
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Errorf("the connection did not go on: %v", err)
	}
	l.Close()
	_ = c.SetDeadline(time.Now().Add(forwardlab.Patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("at the end: %v, want a reset", err)
	}
}

// Idle flows end; those that were answered end later.
func TestRelayFlowsEnd(t *testing.T) {
	l, _, udp := newRelay(t, nil, upperCaseServer(t, "127.0.0.1"))
	if _, err := shout("udp", udp.String(), "x"); err != nil {
		t.Fatal(err)
	}
	age := func(d time.Duration) int {
		l.mu.Lock()
		for p := range l.ports {
			for _, f := range p.flows {
				f.last = time.Now().Add(-d)
			}
		}
		l.mu.Unlock()
		l.sweep()
		return l.Stats().Flows
	}
	if n := age(forwarder.UnrepliedTimeout + time.Second); n != 1 {
		t.Errorf("%d flows after half a minute, and it was answered", n)
	}
	if n := age(forwarder.AssuredTimeout + time.Second); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// TestRelayLateServer: a client that sends before its server is up is served as soon as the server is, also by one that is started
// again in the other family.
func TestRelayLateServer(t *testing.T) {
	probe := forwardlab.ListenUDP(t, "127.0.0.1:0")
	port := probe.At.Port()
	_ = probe.Close()
	_, _, udp := newRelay(t, &testPool{}, port)
	c := forwardlab.ListenUDP(t, "127.0.0.1:0")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), udp.Port())
	send := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			c.Send(t, to, "x")
		}
	}
	send(300 * time.Millisecond)
	for _, server := range []string{"127.0.0.1", "[::1]"} {
		h := forwardlab.ListenUDP(t, server+":"+strconv.Itoa(int(port)))
		_ = h.SetReadDeadline(time.Now().Add(2 * altPause))
		served := make(chan error, 1)
		go func() {
			_, _, err := h.ReadFromUDPAddrPort(make([]byte, 9))
			served <- err
		}()
		for done := false; !done; {
			send(50 * time.Millisecond)
			select {
			case err := <-served:
				if err != nil {
					t.Fatalf("%s: %v", server, err)
				}
				done = true
			default:
			}
		}
		_ = h.Close()
		send(100 * time.Millisecond)
	}
}
