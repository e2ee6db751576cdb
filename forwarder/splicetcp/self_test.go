package splicetcp

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

// A dial to a port on which nothing listens may connect the host's socket to itself. It counts as refused, and leaves nothing
// behind on the port: a server may be started on it at once.
func TestSpliceNoSelfConnect(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	fd, err := rawsock.Socket(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := rawsock.Bind(fd, netip.AddrPortFrom(hostAddr, 0)); err != nil {
		t.Fatal(err)
	}
	self := rawsock.LocalAddr(fd)
	forwardlab.Eventually(t, "the connection to itself", func() bool { done, _ := rawsock.ConnectState(fd, self); return done })

	port := w.freePort()
	alt := netip.AddrPortFrom(hostAddr, w.listener.Port())
	r := &request{p: w.Path, flow: w.flow(port), syn: &stack.SYN{Flow: w.flow(port), TTL: guestTTL, Frame: make([]byte, 54)},
		decision: forwarder.Decision{Action: forwarder.Dial, Dst: self, Alt: alt}, fd: fd, dst: self, since: time.Now()}
	if !w.take() || !w.f.Attempts.Begin(hostAddr) {
		t.Fatal("no room")
	}
	w.mu.Lock()
	w.requests[r.flow] = r
	w.mu.Unlock()
	w.dialled(r)

	server, err := rawsock.Socket(true)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	if err := rawsock.Bind(server, self); err != nil {
		t.Errorf("a server on the port: %v", err)
	}
	c := w.connect(port) // the alternative was tried, as after any refusal
	h := forwardlab.Accept(t, w.remote)
	forwardlab.SendString(t, c, "x")
	forwardlab.Expect(t, h, "x")
	w.waitFor("the flow is in the table", func(stats) bool { return w.find(w.flow(port).Key(flow.TCP)) })
}
