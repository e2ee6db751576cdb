package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest"
	"rootlessnet/userns"
)

// TestMain is also the program that looks at a network from inside: PROBE is "tcp ADDRESS" or "dns SERVER NAME".
func TestMain(m *testing.M) {
	if words := strings.Fields(os.Getenv("PROBE")); len(words) > 0 {
		fmt.Print(probe(words))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// probePatience is less than any timer of the kernel: silence is told from an answer by it.
const probePatience = 1500 * time.Millisecond

func probe(words []string) string {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	if words[0] == "dns" {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, words[1]+":53")
		}}
		addrs, err := r.LookupHost(ctx, words[2])
		slices.Sort(addrs)
		return fmt.Sprint(addrs, err)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", words[1])
	var errno syscall.Errno
	switch {
	case err == nil:
		c.Close()
		return "open"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return "silence"
}

// holder is a process in a user and a network namespace of its own; as root it is in a network namespace only.
func holder(t *testing.T) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// inside runs the probe in the namespaces of pid.
func inside(t *testing.T, pid int, words string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	code, err := userns.ExecIn(t.Context(), pid, userns.Command{Argv: []string{self}, Env: append(os.Environ(), "PROBE="+words), Stdout: w, Stderr: w})
	w.Close()
	out, rerr := io.ReadAll(r)
	if err != nil || rerr != nil || code != 0 {
		t.Fatalf("%s: exit %d: %v %v: %s", words, code, err, rerr, out)
	}
	return string(out)
}

// local is a server on the host's loopback.
func local(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func TestAttachLeavesNothing(t *testing.T) {
	nettest.CheckLeaks(t)
	one, two := holder(t), holder(t)
	runtime := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, err := Attach(ctx, Target{PID: one}, Config{Configure: true, Name: "one", RuntimeDir: runtime})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Attach(t.Context(), Target{NetNS: fmt.Sprintf("/proc/%d/ns/net", two)}, Config{Configure: true, RuntimeDir: runtime, Publish: []string{"127.0.0.1::80"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), Target{PID: one}, Config{Name: "one", RuntimeDir: runtime}); err == nil {
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
	if s := a.Stats(); s.TxPackets == 0 || s.Counters["policy.host-loopback-closed"] == 0 {
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
	b, err := Attach(t.Context(), Target{PID: holder(t)}, Config{RuntimeDir: t.TempDir()})
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

// TestAttachPlan is a network whose addresses have meanings of their own.
func TestAttachPlan(t *testing.T) {
	pid, port := holder(t), local(t)
	addr := netip.MustParseAddr
	b, err := Attach(t.Context(), Target{PID: pid}, Config{
		Configure: true, RuntimeDir: t.TempDir(), HostLoopback: HostLoopback{All: true}, IfName: "tap0",
		Plan: &NetworkPlan{
			Addrs:   []netip.Prefix{netip.MustParsePrefix("10.9.0.100/24"), netip.MustParsePrefix("10.9.1.1/32"), netip.MustParsePrefix("fd00::100/64")},
			Gateway: addr("10.9.0.2"), Gateway6: addr("fd00::2"),
			Routes: []Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: addr("10.9.0.2"), Source: addr("10.9.1.1"), Metric: 7},
				{Dst: netip.MustParsePrefix("::/0"), Gateway: addr("fd00::2")},
				{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: addr("192.0.2.77"), Source: addr("192.0.2.78")}, // refused: no such source
			},
			Special: []SpecialAddr{
				{Addr: addr("10.9.0.2"), To: ToLoopback}, {Addr: addr("10.9.0.3"), DNS: true}, {Addr: addr("10.9.0.4"), To: ToNowhere},
				{Addr: addr("10.9.0.5"), To: ToSilence}, {Addr: addr("169.254.1.2"), To: ToHost, Host: addr("127.0.0.1")}, {Addr: addr("fd00::2"), To: ToLoopback},
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

// TestAttachHostAddresses is a guest that bears an address of the host's network.
func TestAttachHostAddresses(t *testing.T) {
	pid, port := holder(t), local(t)
	gateway := netip.MustParseAddr("172.29.7.1")
	b, err := Attach(t.Context(), Target{PID: pid}, Config{
		Configure: true, RuntimeDir: t.TempDir(), HostLoopback: HostLoopback{All: true},
		Plan: &NetworkPlan{
			Addrs: []netip.Prefix{netip.MustParsePrefix("172.29.7.9/24")}, Gateway: gateway, HostAddresses: true,
			Special: []SpecialAddr{{Addr: gateway, To: ToLoopback}, {Addr: netip.MustParseAddr("172.29.7.20"), To: ToHost, Host: netip.MustParseAddr("127.0.0.1")}},
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

func TestAttachContradictions(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	plan := func(change func(*NetworkPlan)) Config {
		p := &NetworkPlan{Addrs: []netip.Prefix{prefix("10.0.2.100/24")}, Gateway: addr("10.0.2.2")}
		change(p)
		return Config{Plan: p}
	}
	for _, c := range []struct {
		field, text string
		target      Target
		config      Config
	}{
		{"Target", "one of them", Target{}, Config{}},
		{"Target", "one of them", Target{PID: 1, NetNS: "/run/netns/x"}, Config{}},
		{"Target", "invalid process: -1", Target{PID: -1}, Config{}},
		{"Target", "a TAP is not configured", Target{TAP: os.Stdin}, Config{Configure: true}},
		{"Network", "network mode and attaching", Target{PID: 1}, Config{Network: NetworkHost}},
		{"IfName", `invalid interface name: "a/b"`, Target{PID: 1}, Config{IfName: "a/b"}},
		{"OutboundAddr", "invalid IPv4 address", Target{PID: 1}, Config{OutboundAddr: addr("::1")}},
		{"Plan", "addresses beside it", Target{PID: 1}, Config{Plan: &NetworkPlan{}, IP: addr("10.0.2.9")}},
		{"Plan", "a gateway needs an address", Target{PID: 1}, Config{Plan: &NetworkPlan{}}},
		{"Plan", "a gateway needs an address", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Gateway6 = addr("fd00::2") })},
		{"Plan", "is the gateway's", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Gateway = addr("10.0.2.100") })},
		{"Plan", "invalid IPv4 gateway", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Gateway = addr("fd00::2") })},
		{"Plan", "is there twice", Target{PID: 1}, plan(func(p *NetworkPlan) {
			p.Special = []SpecialAddr{{Addr: addr("10.0.2.3")}, {Addr: addr("10.0.2.3"), DNS: true}}
		})},
		{"Plan", "leads to no address", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Special = []SpecialAddr{{Addr: addr("10.0.2.3"), To: ToHost}} })},
		{"Plan", "invalid target", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Special = []SpecialAddr{{Addr: addr("10.0.2.3"), To: "moon"}} })},
		{"Plan", "invalid route", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Routes = []Route{{Dst: prefix("::/0"), Gateway: addr("10.0.2.2")}} })},
	} {
		_, err := c.config.attachPlan(&c.target, noHost{})
		var wrong *UsageError
		if !errors.As(err, &wrong) || wrong.Field != c.field || !strings.Contains(wrong.Error(), c.text) {
			t.Errorf("%+v %+v: %v, want %s: %s", c.target, c.config, err, c.field, c.text)
		}
	}
}
