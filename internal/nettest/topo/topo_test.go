package topo_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/topo"
)

func TestMain(m *testing.M) {
	topo.Enter()
	os.Exit(m.Run())
}

func newTopo(t *testing.T) *topo.Topo {
	t.Helper()
	tp, err := topo.New(topo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tp.Close)
	return tp
}

func TestConnectsBothWays(t *testing.T) {
	tp := newTopo(t)
	for _, c := range []struct {
		from, to *topo.NS
		at       netip.Addr
	}{
		{tp.Here, tp.There, topo.There4},
		{tp.There, tp.Here, topo.Here4},
		{tp.Here, tp.There, topo.There6},
		{tp.There, tp.Here, topo.Here6},
	} {
		if c.at.Is6() && !tp.IPv6 {
			continue
		}
		l, err := c.to.Listen("tcp", netip.AddrPortFrom(c.at, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.from.Dial("tcp", l.Addr().String(), time.Second)
		if err != nil {
			t.Errorf("dial %v: %v", c.at, err)
		} else {
			conn.Close()
		}
		l.Close()
	}
}

func TestThereAnswersAsARouter(t *testing.T) {
	tp := newTopo(t)
	for _, c := range []struct {
		to   netip.Addr
		want error
	}{
		{topo.There4, syscall.ECONNREFUSED},
		{topo.Unreachable4, syscall.EHOSTUNREACH},
		{topo.Prohibited4, syscall.EHOSTUNREACH},
		{topo.Blackhole4, os.ErrDeadlineExceeded},
		{topo.There6, syscall.ECONNREFUSED},
		{topo.Unreachable6, syscall.ENETUNREACH},
		{topo.Prohibited6, syscall.EACCES},
		{topo.Blackhole6, os.ErrDeadlineExceeded},
	} {
		if c.to.Is6() && !tp.IPv6 {
			continue
		}
		// Long enough for a second SYN: on a link without delay the answer to the first may come while connect still
		// holds the socket, and then the kernel ignores it (LockDroppedIcmps).
		conn, err := tp.Here.Dial("tcp", netip.AddrPortFrom(c.to, 9).String(), 2500*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		var timeout net.Error
		if c.want == os.ErrDeadlineExceeded && errors.As(err, &timeout) && timeout.Timeout() {
			continue
		}
		if !errors.Is(err, c.want) {
			t.Errorf("dial %v: got %v, want %v", c.to, err, c.want)
		}
	}
}

func TestCommandIsAnOrdinaryUser(t *testing.T) {
	tp := newTopo(t)
	cmd := tp.Here.Command("/bin/cat", "/proc/self/status", "/proc/self/net/dev")
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(out.String(), set+":\t0000000000000000") {
			t.Errorf("%s is not empty:\n%s", set, out.String())
		}
	}
	uid := fmt.Sprintf("Uid:\t%d", os.Getuid())
	if os.Getuid() == 0 || !strings.Contains(out.String(), uid) {
		t.Errorf("want %q of an ordinary user in:\n%s", uid, out.String())
	}
	if !strings.Contains(out.String(), topo.Link+":") {
		t.Errorf("no %s in the namespace of the command:\n%s", topo.Link, out.String())
	}
}

func TestCloseKillsCommands(t *testing.T) {
	tp, err := topo.New(topo.Options{MTU: 9000})
	if err != nil {
		t.Fatal(err)
	}
	cmd := tp.There.Command("/bin/sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tp.Close()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		t.Error("the command outlived its namespace")
	}
}

func TestCoverIsSeenByCommands(t *testing.T) {
	tp := newTopo(t)
	f, err := topo.Cover("/etc/hosts", []byte("first\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	for _, want := range []string{"first\n", "later\n"} {
		if _, err := f.WriteAt([]byte(want), 0); err != nil {
			t.Fatal(err)
		}
		cmd := tp.Here.Command("/bin/cat", "/etc/hosts")
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Run(); err != nil || out.String() != want {
			t.Errorf("read %q, %v; want %q", out.String(), err, want)
		}
	}
}
