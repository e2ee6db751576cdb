package udp

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/procnet"
	"rootlessnet/stack"
)

func TestUDPRoundTrip(t *testing.T) {
	for _, c := range []struct {
		host  string
		guest netip.AddrPort
	}{{"127.0.0.1:0", forwardlab.Guest4}, {"[::1]:0", forwardlab.Guest6}} {
		h := forwardlab.ListenUDP(t, c.host)
		w := newWorld(t, nil)
		w.send(c.guest, h.At, "question")
		s, from := h.Receive(t)
		if s != "question" {
			t.Fatalf("host got %q", s)
		}
		h.Send(t, from, "answer")
		d := forwardlab.Receive(t, w.g.UDP, "answer")
		if string(d.Payload) != "answer" || d.Src != h.At || d.Dst != c.guest || d.TTL != 63 {
			t.Errorf("guest got %+v", d)
		}
		w.send(c.guest, h.At, "") // an empty datagram is one
		if s, _ := h.Receive(t); s != "" {
			t.Errorf("host got %q", s)
		}
		h.Send(t, from, "")
		if d := forwardlab.Receive(t, w.g.UDP, "empty answer"); len(d.Payload) != 0 {
			t.Errorf("guest got %q", d.Payload)
		}
		f := w.f.Flows.List()
		if len(f) != 1 || f[0].State != flow.Established || f[0].Direction != flow.Outbound || f[0].Key.Src != c.guest || f[0].Key.Dst != h.At ||
			f[0].PacketsToHost != 2 || f[0].BytesToHost != 8 || f[0].PacketsToGuest != 2 || f[0].BytesToGuest != 6 {
			t.Errorf("flows %+v", f)
		}
	}
}

func TestUDPMappingAndFilter(t *testing.T) {
	a, b, unrelated := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.2:0")
	w := newWorld(t, nil)
	w.send(forwardlab.Guest4, a.At, "1")
	_, from := a.Receive(t)
	w.send(forwardlab.Guest4, b.At, "2")
	if _, from2 := b.Receive(t); from2 != from {
		t.Errorf("mapping depends on the endpoint: %v, %v", from, from2)
	}
	other := netip.AddrPortFrom(forwardlab.Guest4.Addr(), 4001)
	w.send(other, a.At, "3")
	if _, from2 := a.Receive(t); from2.Port() == from.Port() {
		t.Error("two sources of the guest share a mapping")
	}
	unrelated.Send(t, netip.AddrPortFrom(a.At.Addr(), from.Port()), "unsolicited")
	w.waitDrop(t, DropUnsolicited, 1)
	forwardlab.ReceiveNothing(t, w.g.UDP, "datagram")
}

func TestUDPKeepsEphemeralPort(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	// A port that was free a moment ago, in the range of every program's ports.
	probe, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(probe.LocalAddr().(*net.UDPAddr).Port)
	w.localPorts = procnet.PortRange{First: port, Last: port}
	src := netip.AddrPortFrom(forwardlab.Guest4.Addr(), port)
	w.send(src, h.At, "taken")
	if _, from := h.Receive(t); from.Port() == port {
		t.Error("a port of the host was taken over")
	}
	_ = probe.Close()
	w.advance(forwarder.UnrepliedTimeout)
	w.sweep()
	w.send(src, h.At, "free")
	if _, from := h.Receive(t); from.Port() != port {
		t.Errorf("source port %d, want %d", from.Port(), port)
	}
	service := netip.AddrPortFrom(forwardlab.Guest4.Addr(), port-1) // outside of the range
	w.send(service, h.At, "no")
	if _, from := h.Receive(t); from.Port() == port-1 {
		t.Error("the guest occupies a port of the host outside of the ephemeral range")
	}
}

func TestUDPTimeouts(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	flows := func() int { w.sweep(); return w.Stats().Flows }
	w.send(forwardlab.Guest4, h.At, "x")
	h.Receive(t)
	w.advance(forwarder.UnrepliedTimeout - 1)
	if flows() != 1 {
		t.Fatal("an unreplied flow ended early")
	}
	w.advance(1)
	if flows() != 0 || w.Stats().Sockets != 0 {
		t.Fatal("an unreplied flow outlived its timeout")
	}
	w.send(forwardlab.Guest4, h.At, "x")
	_, from := h.Receive(t)
	h.Send(t, from, "y")
	forwardlab.Receive(t, w.g.UDP, "answer")
	w.advance(forwarder.AssuredTimeout - 1)
	if flows() != 1 {
		t.Fatal("an assured flow ended early")
	}
	w.advance(1)
	if flows() != 0 {
		t.Fatal("an assured flow outlived its timeout")
	}
}

func TestUDPEvictsOldestSocket(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, func(c *worldConfig) { c.maxSockets = 3 })
	src := func(i int) netip.AddrPort { return netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(5000+i)) }
	for i := range 3 {
		w.send(src(i), h.At, "x")
		h.Receive(t)
		w.advance(time.Second)
	}
	w.send(src(0), h.At, "x") // now 1 is the one idle for longest
	h.Receive(t)
	w.send(src(3), h.At, "x")
	h.Receive(t)
	seen := map[uint16]bool{}
	for _, f := range w.f.Flows.List() {
		seen[f.Key.Src.Port()] = true
	}
	if len(seen) != 3 || seen[5001] || w.Stats().Evicted != 1 || w.Stats().Sockets != 3 {
		t.Errorf("left: %v, %+v", seen, w.Stats())
	}
}

func TestUDPEvictsOldestFlows(t *testing.T) {
	w := newWorld(t, nil)
	w.maxPeers, w.maxFlows = 4, 6
	for i := range 10 {
		w.send(forwardlab.Guest4, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(20000+i)), "x")
		w.advance(time.Second)
	}
	if n := w.Stats().Flows; n != 4 {
		t.Errorf("%d flows of one socket, want 4", n)
	}
	for i := range 10 {
		w.send(netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(6000+i)), forwardlab.AP("127.0.0.1:20000"), "x")
		w.advance(time.Second)
	}
	fl := w.f.Flows.List()
	if len(fl) != 6 {
		t.Errorf("%d flows, want 6", len(fl))
	}
	for _, f := range fl {
		if f.Key.Src.Port() < 6004 {
			t.Errorf("an older flow stays: %+v", f)
		}
	}
}

// A guest that sends from more and more ports must not take all descriptors, and can still send when none is left.
func TestUDPOutOfDescriptors(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	w.send(netip.AddrPortFrom(forwardlab.Guest4.Addr(), 1), h.At, "x")
	h.Receive(t)
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	low := lim
	low.Cur = uint64(countFDs(t)) // the directory itself is one of them
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) }()
	for i := range 20 {
		w.send(netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(100+i)), h.At, fmt.Sprint(i))
		if s, _ := h.Receive(t); s != fmt.Sprint(i) {
			t.Fatalf("host got %q, want %d", s, i)
		}
	}
	if w.Stats().Evicted == 0 {
		t.Error("nothing was evicted: the limit was not reached")
	}
}

func TestUDPRefused(t *testing.T) {
	for _, guest := range []netip.AddrPort{forwardlab.Guest4, forwardlab.Guest6} {
		closed := forwardlab.ListenUDP(t, map[bool]string{true: "127.0.0.1:0", false: "[::1]:0"}[guest.Addr().Is4()])
		open := forwardlab.ListenUDP(t, netip.AddrPortFrom(closed.At.Addr(), 0).String())
		w := newWorld(t, nil)
		_ = closed.Close()
		k := w.probe(t, guest, closed.At)
		e := w.refusal(t, k)
		if unreachables(t, guest.Addr().Is4()) == k.before {
			t.Error("the kernel does not count its ICMP errors")
		}
		if e.Flow != (stack.Flow{Src: guest, Dst: closed.At}) || string(e.Payload) != "probe" || e.E != stack.PortUnreachable(guest.Addr().Is4()) {
			t.Errorf("got %+v", e)
		}
		// An error of one remote must not lose a datagram to another.
		for i := range 50 {
			k := w.probe(t, guest, closed.At)
			w.send(guest, open.At, fmt.Sprint(i))
			if s, _ := open.Receive(t); s != fmt.Sprint(i) {
				t.Fatalf("got %q, want %d", s, i)
			}
			if e := w.refusal(t, k); e.Flow.Dst != closed.At {
				t.Fatalf("error about %v", e.Flow.Dst)
			}
		}
		if n := w.drops(DropUnreachable); n != 0 {
			t.Errorf("%d sends failed", n)
		}
	}
}

// A named loopback port answers on the gateway's address, and in the family it listens on.
func TestUDPTOSAndTTL(t *testing.T) {
	for _, c := range []struct {
		host  string
		guest netip.AddrPort
	}{{"127.0.0.1:0", forwardlab.Guest4}, {"[::1]:0", forwardlab.Guest6}} {
		h := forwardlab.ListenUDP(t, c.host)
		rc, err := h.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		set := func(v4, v6, value int) {
			_ = rc.Control(func(fd uintptr) {
				level, opt := unix.IPPROTO_IP, v4
				if c.guest.Addr().Is6() {
					level, opt = unix.IPPROTO_IPV6, v6
				}
				if err := unix.SetsockoptInt(int(fd), level, opt, value); err != nil {
					t.Fatal(err)
				}
			})
		}
		set(unix.IP_RECVTOS, unix.IPV6_RECVTCLASS, 1)
		set(unix.IP_RECVTTL, unix.IPV6_RECVHOPLIMIT, 1)
		w := newWorld(t, nil)
		for i, want := range []struct{ tos, ttl uint8 }{{0xb8 | 1, 64}, {0xb8 | 1, 64}, {2, 200}, {3, 2}, {0, 64}} {
			w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: c.guest, Dst: h.At}, Payload: []byte("x"), TTL: want.ttl, TOS: want.tos, DF: i%2 == 0})
			oob := make([]byte, 128)
			_ = h.SetReadDeadline(time.Now().Add(forwardlab.Patience))
			_, n, _, from, err := h.ReadMsgUDPAddrPort(make([]byte, 10), oob)
			if err != nil {
				t.Fatal(err)
			}
			got := parseControl(oob[:n])
			if got.tos != want.tos || got.ttl != want.ttl-1 {
				t.Errorf("host saw tos %#x ttl %d, want %#x %d", got.tos, got.ttl, want.tos, want.ttl-1)
			}
			set(unix.IP_TOS, unix.IPV6_TCLASS, int(want.tos))
			set(unix.IP_TTL, unix.IPV6_UNICAST_HOPS, int(want.ttl))
			h.Send(t, from, "y")
			if d := forwardlab.Receive(t, w.g.UDP, "answer"); d.TOS != want.tos || d.TTL != want.ttl-1 {
				t.Errorf("guest saw tos %#x ttl %d, want %#x %d", d.TOS, d.TTL, want.tos, want.ttl-1)
			}
		}
	}
}

func TestUDPBatches(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	peer := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	for _, c := range []struct{ size, count, tail int }{{1000, 10, 1}, {1000, 2, 0}, {100, 150, 7}, {1, 3, 0}, {30000, 2, 0}} {
		batch := strings.Repeat(strings.Repeat("a", c.size), c.count) + strings.Repeat("b", c.tail)
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: []byte(batch), TTL: 64, GSOSize: uint16(c.size)})
		for i := range c.count {
			if s, _ := h.Receive(t); len(s) != c.size {
				t.Fatalf("%+v: datagram %d has %d bytes", c, i, len(s))
			}
		}
		if c.tail > 0 {
			if s, _ := h.Receive(t); len(s) != c.tail {
				t.Fatalf("%+v: the last has %d bytes", c, len(s))
			}
		}
	}
	h.ReceiveNothing(t)

	// And in the other direction: a batch that the sender passes to the kernel (UDP_SEGMENT) arrives as one.
	w.send(forwardlab.Guest4, peer.At, "x")
	_, from := peer.Receive(t)
	var oob controlBuffer
	oob.add(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)[0] = 200
	if _, _, err := peer.WriteMsgUDPAddrPort(make([]byte, 1050), oob.buf[:oob.n], from); err != nil {
		skip.Missing(t, "this kernel has no UDP_SEGMENT: %v", err)
	}
	for got := 0; got < 1050; {
		d := forwardlab.Receive(t, w.g.UDP, "batch")
		got += len(d.Payload)
		if len(d.Payload) > 200 && d.GSOSize != 200 {
			t.Errorf("a batch of %d bytes with GSOSize %d", len(d.Payload), d.GSOSize)
		}
	}
}

// resolver is a forwarder.Resolver for UDP.
func TestUDPOutboundAllocatesNothing(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	h6 := forwardlab.ListenUDP(t, "[::1]:0")
	w := newWorld(t, nil)
	payload := make([]byte, 1200)
	for _, d := range []stack.Datagram{
		{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: payload, TTL: 64},
		{Flow: stack.Flow{Src: forwardlab.Guest6, Dst: h6.At}, Payload: payload, TTL: 64, DF: true},
		{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: payload, TTL: 64, GSOSize: 300},
	} {
		w.HandleUDP(&d)
		if n := testing.AllocsPerRun(200, func() { w.HandleUDP(&d) }); n != 0 {
			t.Errorf("%v: %v allocations a datagram", d.Dst, n)
		}
	}
}
