package splicetcp

import (
	"errors"
	"net/netip"
	"testing"

	"rootlessnet/stack"
)

func TestWasForwarded(t *testing.T) {
	for ttl, want := range map[uint8]bool{63: true, 60: true, 59: false, 64: false, 65: false, 1: false, 127: true, 128: false, 254: true, 255: false} {
		if wasForwarded(ttl) != want {
			t.Errorf("TTL %d: %v", ttl, !want)
		}
	}
}

// forwarding makes w's namespace one that is ready when the channel says so.
func (w *roadWorld) forwarding() (asked chan struct{}, ready chan error) {
	asked, ready = make(chan struct{}, 10), make(chan error)
	w.kernel.k.Forward = func() error {
		asked <- struct{}{}
		return <-ready
	}
	return asked, ready
}

// flow is that of syn.
func (w *roadWorld) flow(port uint16) stack.Flow {
	return stack.Flow{Src: netip.AddrPortFrom(here4, port), Dst: w.listener}
}

// TestKernelRoadForwarded: the first request waits until the namespace is ready, and is not lost.
func TestKernelRoadForwarded(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	asked, ready := w.forwarding()
	if !w.syn(w.freePort(), guestTTL) || len(asked) != 0 {
		t.Error("a request of the guest's own is not taken, or asks")
	}
	port := w.freePort()
	for range 3 { // sent again, while it waits
		if !w.syn(port, guestTTL-1) {
			t.Fatal("the request was left to the stack")
		}
	}
	for i := range uint16(2 * heldMost) {
		w.syn(20000+i, guestTTL-1)
	}
	w.kernel.mu.Lock()
	if n := len(w.kernel.held); n > heldMost || w.kernel.held[w.flow(port)] == nil {
		t.Errorf("%d requests are held", n)
	}
	w.kernel.held = map[stack.Flow]*stack.SYN{w.flow(port): w.kernel.held[w.flow(port)]}
	w.kernel.mu.Unlock()
	if s := w.Stats(); s.Dialling != 0 {
		t.Errorf("before the namespace is ready: %+v", s)
	}
	ready <- nil
	c := w.come(port)
	defer c.Close()
	w.wait("joined", func(s StreamStats) bool { return s.Spliced == 1 })
	if len(asked) != 1 {
		t.Errorf("it was asked %d times", len(asked))
	}
	port = w.freePort()
	if !w.syn(port, 127) {
		t.Fatal("the next request was left to the stack")
	}
	c2 := w.come(port)
	defer c2.Close()
	w.wait("joined", func(s StreamStats) bool { return s.Spliced == 2 })
}

// TestKernelRoadForwardRefused: it is asked once, and the stack has the rest.
func TestKernelRoadForwardRefused(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	asked, ready := w.forwarding()
	w.syn(w.freePort(), guestTTL-1)
	ready <- errors.New("no such expression")
	eventually(t, "refused", func() bool {
		w.kernel.mu.Lock()
		defer w.kernel.mu.Unlock()
		return w.kernel.forwarding == forwardRefused
	})
	for range 3 {
		if w.syn(w.freePort(), guestTTL-1) {
			t.Error("a request was taken")
		}
	}
	if len(asked) != 1 || len(w.kernel.held) != 0 {
		t.Errorf("asked %d times; %d held", len(asked), len(w.kernel.held))
	}
	if !w.syn(w.freePort(), guestTTL) {
		t.Error("a request of the guest's own was left to the stack")
	}
}

// TestKernelRoadForwardDoubt: rules that are in the way of what is forwarded say nothing of the guest's own connections.
func TestKernelRoadForwardDoubt(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	w.kernel.forwarding = forwardReady
	for i := range uint16(doubtAfter) {
		if !w.syn(20000+i, guestTTL-1) || w.syn(20000+i, guestTTL-1) {
			t.Fatalf("request %d: left to the stack, or taken when it was sent again", i)
		}
	}
	if w.syn(21000, guestTTL-1) {
		t.Error("the next is tried all the same")
	}
	if !w.syn(21001, guestTTL) {
		t.Error("a request of the guest's own was left to the stack")
	}
}

// TestKernelRoadForwardClosed: the answer may come when the road has been closed.
func TestKernelRoadForwardClosed(t *testing.T) {
	w := newRoadWorld(t)
	if w == nil {
		return
	}
	_, ready := w.forwarding()
	w.syn(w.freePort(), guestTTL-1)
	w.Streams.Close()
	ready <- nil
	eventually(t, "noted", func() bool {
		w.kernel.mu.Lock()
		defer w.kernel.mu.Unlock()
		return w.kernel.forwarding == forwardReady && len(w.kernel.requests) == 0
	})
}
