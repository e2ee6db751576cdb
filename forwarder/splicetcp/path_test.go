package splicetcp

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

func TestSpliceOutbound(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	port := w.freePort()
	if !w.syn(port, guestTTL) {
		t.Fatal("the request was left to the stack path")
	}
	if other, err := net.Dial("tcp", w.listener.String()); err == nil { // or the reset was there first
		forwardlab.ExpectReset(t, other)
		other.Close()
	}
	c := w.connect(port)
	defer c.Close()
	h, err := w.remote.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	forwardlab.SendString(t, c, "request")
	forwardlab.Expect(t, h, "request")
	forwardlab.SendString(t, h, "answer")
	forwardlab.Expect(t, c, "answer")
	w.waitFor("counted", func(s stats) bool {
		return s.Active == 1 && s.Outbound == 1 && s.Unmatched == 1 && s.Dialling == 0
	})
	c.Close()
	if _, err := io.ReadAll(h); err != nil {
		t.Error(err)
	}
}

// TestSpliceDeclinesForwarded: a SYN that the guest has forwarded has a lower TTL. It is left to the stack path where the
// namespace cannot be prepared for forwarded TCP.
func TestSpliceDeclinesForwarded(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	for _, ttl := range []uint8{1, 63, 65, 127, 255} {
		if w.syn(w.freePort(), ttl) {
			t.Errorf("a request with TTL %d was taken", ttl)
		}
	}
	if s := w.Stats(); s.Dialling != 0 || len(w.requests) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestSpliceCircuitBreaker: where packet-filter rules inside prevent the handshake, three connections are delayed, not each.
func TestSpliceCircuitBreaker(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	for i := range uint16(forwarder.SpliceFailures) {
		if !w.syn(20000+i, guestTTL) {
			t.Fatalf("request %d was left to the stack path", i)
		}
		if w.syn(20000+i, guestTTL) {
			t.Fatalf("request %d, sent again, was taken", i)
		}
	}
	if w.syn(21000, guestTTL) {
		t.Error("the next is tried nevertheless")
	}
	w.own.EndPause()
	port := w.freePort()
	if !w.syn(port, guestTTL) {
		t.Fatal("later, none is tried")
	}
	c := w.connect(port)
	defer c.Close()
	w.waitFor("joined", func(s stats) bool { return s.Active == 1 })
	if w.own.Fail() {
		t.Error("the failures before the success still count")
	}
}

// TestSpliceCloseWithARequestUnderWay: a request in progress when the Path is closed leaves no descriptor and no running timer.
func TestSpliceCloseWithARequestUnderWay(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	w.syn(20000, guestTTL)
	h, err := w.remote.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	w.pause()
	w.stop()
	forwardlab.ExpectReset(t, h)
	if !w.syn(20001, guestTTL) {
		t.Error("a request after Close goes on to the stack path")
	}
	w.endPause()
	w.sweep()
}

// TestSpliceSameClientPort: two addresses of the host's loopback are one inside, and may use the same port.
func TestSpliceSameClientPort(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	inside := forwardlab.Listen(t, netip.AddrPortFrom(forwardlab.Here4, 0).String())
	p := w.publish(inside.Addr().(*net.TCPAddr).AddrPort().Port(), newFallback())
	port := w.freePort()
	seen := map[string]bool{}
	for _, client := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		c := forwardlab.Call(t, netip.AddrPortFrom(netip.MustParseAddr(client), port), p.Addr())
		defer c.Close()
		in, err := inside.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		forwardlab.SendString(t, c, client)
		forwardlab.Expect(t, in, client)
		seen[in.RemoteAddr().String()] = true
	}
	if !seen[netip.AddrPortFrom(forwardlab.Other4, port).String()] || len(seen) != 3 {
		t.Errorf("inside they are %v", seen)
	}
	for _, f := range w.f.Flows.List() {
		if f.Key.Src.Port() == 0 {
			t.Errorf("a flow without a port: %v", f.Key)
		}
	}
	w.waitFor("joined", func(s stats) bool { return s.Active == 3 && s.Inbound == 3 })
}

// TestSpliceOutOfDescriptors: a connection that cannot be accepted waits; the listener does not report it in a busy loop.
func TestSpliceOutOfDescriptors(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	c, err := new(plainPool).Get(false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := rawsock.Bind(c, netip.AddrPortFrom(forwardlab.Here4, 0)); err != nil {
		t.Fatal(err)
	}
	if !w.syn(rawsock.LocalAddr(c).Port(), guestTTL) {
		t.Fatal("the request was left to the stack path")
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
	const while = 5 * inbound.Pause
	if err := rawsock.Connect(c, w.listener); err != nil && err != unix.EINPROGRESS {
		t.Error(err)
	}
	time.Sleep(while)
	n := w.Stats().AcceptErrors
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if n == 0 || n > uint64(while/inbound.Pause)+1 {
		t.Errorf("accept was tried %d times in %v", n, while)
	}
	w.waitFor("joined", func(s stats) bool { return s.Active == 1 })
}

// TestSpliceAlternative: the answer to the guest where both destinations of a decision fail. The SYNs are those of a
// second netstack.
func TestSpliceAlternative(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	gw, err := stack.New(stack.Config{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6, Subnet4: forwardlab.Subnet4,
		Subnet6: forwardlab.Subnet6, MAC: forwardlab.GatewayMAC, MTU: forwardlab.WireMTU, CSum: true})
	if err != nil {
		t.Fatal(err)
	}
	gw.SetSYNHandler(w.Path)
	wire := forwardlab.NewWire()
	if err := gw.AddPort(0, wire, forwardlab.GuestMAC, nil); err != nil {
		t.Fatal(err)
	}
	guest := forwardlab.NewGuest(t, wire)
	forwardlab.TestAlternative(t, w.f, guest, wire)
	gw.Close()
	guest.Close()
	if s := w.Stats(); s.DialErrors != 5 || s.Dialling != 0 || forwardlab.Taken(w.budget) != 0 {
		t.Errorf("%+v, %d taken", s, forwardlab.Taken(w.budget))
	}
}
