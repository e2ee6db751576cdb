package stack

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"rootlessnet/tap"
)

func TestDialTCP(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		p := b.peer()
		for _, a := range families {
			client := ap(a.far, 50000)
			var held []*Conn
			for _, port := range []uint16{80, 81} { // one client port, two ports of the guest
				l := p.listen(ap(a.guest, port))
				c, err := b.s.DialTCP(t.Context(), client, ap(a.guest, port))
				if err != nil {
					t.Fatal(err)
				}
				g, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if g.RemoteAddr().String() != client.String() {
					t.Errorf("the guest sees %v", g.RemoteAddr())
				}
				n := c.NetConn()
				if _, err := n.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 5)
				if _, err := io.ReadFull(g, buf); err != nil || string(buf) != "hello" {
					t.Errorf("%q %v", buf, err)
				}
				held = append(held, c)
				defer g.Close()
			}
			if _, err := b.s.DialTCP(t.Context(), client, ap(a.guest, 80)); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("the same 4-tuple twice: %v", err)
			}
			if _, err := b.s.DialTCP(t.Context(), client, ap(a.guest, 82)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("closed port: %v", err)
			}
			for _, c := range held {
				c.Abort()
			}
			l := p.listen(ap(a.guest, 83))
			for range 3 { // the 4-tuple can be used again at once
				c, err := b.s.DialTCP(t.Context(), client, ap(a.guest, 83))
				if err != nil {
					t.Fatal(err)
				}
				g, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				c.Abort()
				if _, err := g.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("the guest saw %v, not a reset", err)
				}
				g.Close()
			}
		}
	})
}

func TestDialTCPTimeout(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for range 2 { // for the second the 4-tuple is free again
		if _, err := b.s.DialTCP(ctx, ap(far4, 5), ap(guest4, 80)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a silent guest: %v", err)
		}
	}
	failed := make(chan error)
	go func() {
		_, err := b.s.DialTCP(context.Background(), ap(far4, 5), ap(guest4, 80))
		failed <- err
	}()
	b.next()
	b.s.Close()
	select {
	case err := <-failed:
		if !errors.Is(err, syscall.ENETDOWN) && !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("closed while dialling: %v", err)
		}
	case <-time.After(patience):
		t.Error("the dial did not end with Close")
	}
}

// A reconnect from the same port right after FINs in both directions is not delayed by the old connection.
func TestPortReuseAfterClose(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns := b.accept()
	p := b.peer()
	tw := tcpip.TCPTimeWaitTimeoutOption(0)
	if err := p.ns.SetTransportProtocolOption(tcp.ProtocolNumber, &tw); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		g, err := gonet.DialTCPWithBind(ctx, p.ns, full(ap(guest4, 7777)), full(ap(far4, 80)), ipv4.ProtocolNumber)
		cancel()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		c := <-conns
		_ = c.CloseWrite()
		_, _ = io.ReadAll(g)
		g.Close()
		if _, err := readAll(c); err != nil {
			t.Error(err)
		}
		c.Close()
		waitFor(t, "the end", func() bool { return b.s.Stats().TCPCurrent == 0 && p.ns.Stats().TCP.CurrentConnected.Value() == 0 })
	}
}
