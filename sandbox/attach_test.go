package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest"
	"rootlessnet/plan"
)

func TestAttachLeavesNothing(t *testing.T) {
	nettest.CheckLeaks(t)
	one, two := holder(t), holder(t)
	runtime := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, err := Attach(ctx, plan.Target{PID: one}, plan.Config{Configure: true, Name: "one", RuntimeDir: runtime})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Attach(t.Context(), plan.Target{NetNS: fmt.Sprintf("/proc/%d/ns/net", two)}, plan.Config{Configure: true, RuntimeDir: runtime, Publish: []string{"127.0.0.1::80"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), plan.Target{PID: one}, plan.Config{Name: "one", RuntimeDir: runtime}); err == nil {
		t.Error("a name was given twice")
	}

	added, err := a.AddPort("127.0.0.1::80-81")
	if err != nil || len(added) != 2 || len(a.Ports()) != 2 || len(b.Ports()) != 1 {
		t.Errorf("added %v, %v; ports %v and %v", added, err, a.Ports(), b.Ports())
	}
	if removed, err := a.RemovePort("81"); err != nil || len(removed) != 1 || removed[0].GuestPort != 81 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, err := a.AddPort("127.0.0.1:http:80"); err == nil {
		t.Error("a bad spec was taken")
	}
	if got := inside(t, one, "tcp 10.0.2.2:1"); got != syscall.ECONNREFUSED.Error() {
		t.Errorf("a closed port of the gateway: %s", got)
	}
	// The port is refused by the host's own address, or by the policy where the host has none.
	if s := a.Stats(); s.TxPackets == 0 || s.Counters["tcp.dial-errors"]+s.Counters["policy.host-loopback-closed"] == 0 {
		t.Errorf("stats: %+v", s)
	}
	if text := string(a.ResolvConf()); !strings.Contains(text, "nameserver 10.0.2.2\n") {
		t.Errorf("resolv.conf:\n%s", text)
	}

	if a.Err() != nil {
		t.Errorf("error before the end: %v", a.Err())
	}
	cancel()
	select {
	case <-a.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the context does not end it")
	}
	if !errors.Is(a.Err(), context.Canceled) || !errors.Is(a.Close(), context.Canceled) {
		t.Errorf("ended with %v", a.Err())
	}
	start := time.Now()
	if err := b.Close(); err != nil || b.Close() != nil {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	if left, _ := os.ReadDir(runtime); len(left) > 0 {
		t.Errorf("left in the runtime directory: %v", left)
	}
}

func TestAttachEndsWithItsAgent(t *testing.T) {
	nettest.CheckLeaks(t)
	b, err := Attach(t.Context(), plan.Target{PID: holder(t)}, plan.Config{RuntimeDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(b.Info().InitPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-b.Done()
	if b.Err() == nil {
		t.Error("no error")
	}
}

// TestAttachPlan: each special address of a NetworkPlan is forwarded to its target.
func TestAttachPlan(t *testing.T) {
	pid, port := holder(t), local(t)
	addr := netip.MustParseAddr
	b, err := Attach(t.Context(), plan.Target{PID: pid}, plan.Config{
		Configure: true, RuntimeDir: t.TempDir(), HostLoopback: plan.HostLoopback{All: true}, IfName: "tap0",
		Plan: &plan.NetworkPlan{
			Addrs:   []netip.Prefix{netip.MustParsePrefix("10.9.0.100/24"), netip.MustParsePrefix("10.9.1.1/32"), netip.MustParsePrefix("fd00::100/64")},
			Gateway: addr("10.9.0.2"), Gateway6: addr("fd00::2"),
			Routes: []plan.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: addr("10.9.0.2"), Source: addr("10.9.1.1"), Metric: 7},
				{Dst: netip.MustParsePrefix("::/0"), Gateway: addr("fd00::2")},
				{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: addr("192.0.2.77"), Source: addr("192.0.2.78")}, // refused: no such source
			},
			Special: []plan.SpecialAddr{
				{Addr: addr("10.9.0.2"), To: plan.ToLoopback}, {Addr: addr("10.9.0.3"), DNS: true}, {Addr: addr("10.9.0.4"), To: plan.ToNoRoute},
				{Addr: addr("10.9.0.5"), To: plan.ToDrop}, {Addr: addr("169.254.1.2"), To: plan.ToHost, Host: addr("127.0.0.1")}, {Addr: addr("fd00::2"), To: plan.ToLoopback},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for words, want := range map[string]string{
		"tcp 10.9.0.2:" + port:               "open",
		"tcp 10.9.0.2:1":                     syscall.ECONNREFUSED.Error(),
		"tcp [fd00::2]:" + port:              "open",
		"tcp 10.9.0.3:80":                    syscall.ECONNREFUSED.Error(),
		"tcp 10.9.0.4:80":                    syscall.ENETUNREACH.Error(),
		"tcp 10.9.0.5:80":                    "silence",
		"tcp 169.254.1.2:" + port:            "open",
		"dns 10.9.0.3 host.docker.internal.": "[10.9.0.2 169.254.1.2 fd00::2] <nil>",
	} {
		if got := inside(t, pid, words); got != want {
			t.Errorf("%s: %s, want %s", words, got, want)
		}
	}
}

// TestAttachGuestIP: a published port is forwarded to an address that is not the guest's first.
func TestAttachGuestIP(t *testing.T) {
	pid := holder(t)
	b, err := Attach(t.Context(), plan.Target{PID: pid}, plan.Config{
		Configure: true, RuntimeDir: t.TempDir(),
		Plan: &plan.NetworkPlan{
			Addrs:   []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("10.88.0.5/24")},
			Gateway: netip.MustParseAddr("10.0.2.2"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	m := plan.PortMapping{Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), GuestIP: netip.MustParseAddr("10.88.0.5"), GuestPort: 80}
	tcp, err := b.AddMappings(m)
	if err != nil {
		t.Fatal(err)
	}
	m.Proto = "udp"
	udp, err := b.AddMappings(m)
	if err != nil || tcp[0].ID == udp[0].ID || tcp[0].GuestIP != m.GuestIP {
		t.Fatalf("%v, %v: %v", tcp, udp, err)
	}
	served := make(chan string, 1)
	go func() { served <- inside(t, pid, "serve 10.88.0.5:80") }()
	read := func(c net.Conn, err error) (string, error) {
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(probePatience))
		if _, err := c.Write([]byte("x")); err != nil {
			return "", err
		}
		buf := make([]byte, 10)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	var got string
	for range 100 { // until it listens
		if got, err = read(net.Dial("tcp", tcp[0].Host().String())); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got != "tcp" {
		t.Errorf("TCP: %q, %v", got, err)
	}
	if got, err := read(net.Dial("udp", udp[0].Host().String())); got != "udp" {
		t.Errorf("UDP: %q, %v", got, err)
	}
	if got := <-served; got != "10.0.2.2 10.0.2.2 <nil>" {
		t.Errorf("the server saw %s", got)
	}
	if removed := b.RemovePorts(func(p plan.Port) bool { return p.GuestIP == m.GuestIP }); len(removed) != 2 || len(b.Ports()) != 0 {
		t.Errorf("removed %v, left %v", removed, b.Ports())
	}
}

// TestAttachOutboundAddr: the outbound address is not the source of connections to the host's loopback.
func TestAttachOutboundAddr(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "you are ", c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	pid := holder(t)
	// The special address forwards to the host's loopback, which a socket that is bound to another address cannot reach.
	special := netip.MustParseAddr("10.0.2.9")
	b, err := Attach(t.Context(), plan.Target{PID: pid}, plan.Config{
		Configure: true, RuntimeDir: t.TempDir(), OutboundAddr: netip.MustParseAddr("127.0.0.5"),
		Plan: &plan.NetworkPlan{
			Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24")}, Gateway: netip.MustParseAddr("10.0.2.2"),
			Special: []plan.SpecialAddr{{Addr: special, To: plan.ToHost, Host: netip.MustParseAddr("127.0.0.1")}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if got := inside(t, pid, "peer 10.0.2.9:"+port); got != "you are 127.0.0.1<nil>" {
		t.Errorf("to the loopback: %s", got)
	}
}

// TestAttachSocket: the link is a SOCK_SEQPACKET socket that carries frames, and the guest is at its other end.
func TestAttachSocket(t *testing.T) {
	nettest.CheckLeaks(t)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest := os.NewFile(uintptr(fds[1]), "guest")
	b, err := Attach(t.Context(), plan.Target{TAP: os.NewFile(uintptr(fds[0]), "socket")}, plan.Config{RuntimeDir: t.TempDir(), MTU: 1500, DisableIPv6: true})
	if err != nil {
		t.Fatal(err)
	}
	request := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, // Ethernet, RFC 826
		0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2,
	}
	if _, err := guest.Write(request); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2000)
	if n, err := guest.Read(answer); err != nil || n < 42 || answer[21] != 2 || netip.AddrFrom4([4]byte(answer[28:32])).String() != "10.0.2.2" {
		t.Errorf("ARP reply: %x, %v", answer[:max(n, 0)], err)
	}
	guest.Close()
	select {
	case <-b.Done():
	case <-time.After(5 * time.Second):
		t.Error("it does not end with its socket")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestAttachHostAddresses: the guest has an address of the host's network.
func TestAttachHostAddresses(t *testing.T) {
	pid, port := holder(t), local(t)
	gateway := netip.MustParseAddr("172.29.7.1")
	b, err := Attach(t.Context(), plan.Target{PID: pid}, plan.Config{
		Configure: true, RuntimeDir: t.TempDir(), HostLoopback: plan.HostLoopback{All: true},
		Plan: &plan.NetworkPlan{
			Addrs: []netip.Prefix{netip.MustParsePrefix("172.29.7.9/24")}, Gateway: gateway, HostAddresses: true,
			Special: []plan.SpecialAddr{{Addr: gateway, To: plan.ToLoopback}, {Addr: netip.MustParseAddr("172.29.7.20"), To: plan.ToHost, Host: netip.MustParseAddr("127.0.0.1")}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, words := range []string{"tcp 172.29.7.1:" + port, "tcp 172.29.7.20:" + port} {
		if got := inside(t, pid, words); got != "open" {
			t.Errorf("%s: %s", words, got)
		}
	}
	if b.Info().Addresses[0].String() != "172.29.7.9" || b.Info().Gateways[0] != gateway {
		t.Errorf("info: %+v", b.Info())
	}
}
