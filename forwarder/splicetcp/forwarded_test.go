package splicetcp

import (
	"errors"
	"testing"

	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

func TestWasForwarded(t *testing.T) {
	for ttl, want := range map[uint8]bool{63: true, 60: true, 59: false, 64: false, 65: false, 1: false, 127: true, 128: false, 254: true, 255: false} {
		if wasForwarded(ttl) != want {
			t.Errorf("TTL %d: %v", ttl, !want)
		}
	}
}

// waitForReady makes w's namespace one that is ready when the channel says so.
func (w *world) waitForReady() (asked chan struct{}, ready chan error) {
	asked, ready = make(chan struct{}, 10), make(chan error)
	w.in.Forward = func() error {
		asked <- struct{}{}
		return <-ready
	}
	return asked, ready
}

// TestSpliceForwarded: the first request waits until the namespace is ready, and is not lost.
func TestSpliceForwarded(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	asked, ready := w.waitForReady()
	if !w.syn(w.freePort(), guestTTL) || len(asked) != 0 {
		t.Error("a request of the guest's own is not taken, or asks")
	}
	port := w.freePort()
	for range 3 { // sent again, while it waits
		if !w.syn(port, guestTTL-1) {
			t.Fatal("the request was left to the stack path")
		}
	}
	for i := range uint16(2 * maxWaiting) {
		w.syn(20000+i, guestTTL-1)
	}
	w.mu.Lock()
	if n := len(w.waiting); n > maxWaiting || w.waiting[w.flow(port)] == nil {
		t.Errorf("%d requests wait", n)
	}
	w.waiting = map[stack.Flow]*stack.SYN{w.flow(port): w.waiting[w.flow(port)]}
	w.mu.Unlock()
	if s := w.Stats(); s.Dialling != 0 {
		t.Errorf("before the namespace is ready: %+v", s)
	}
	ready <- nil
	// The test's connection stands for the re-injected SYN and must not come before it: it would belong to no request.
	w.waitReinjected(port)
	c := w.connect(port)
	defer c.Close()
	w.waitFor("joined", func(s stats) bool { return s.Active == 1 })
	if len(asked) != 1 {
		t.Errorf("it was asked %d times", len(asked))
	}
	port = w.freePort()
	if !w.syn(port, 127) {
		t.Fatal("the next request was left to the stack path")
	}
	c2 := w.connect(port)
	defer c2.Close()
	w.waitFor("joined", func(s stats) bool { return s.Active == 2 })
}

// TestSpliceForwardRefused: it is asked once, and the stack path has the rest.
func TestSpliceForwardRefused(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	asked, ready := w.waitForReady()
	w.syn(w.freePort(), guestTTL-1)
	ready <- errors.New("no such expression")
	forwardlab.Eventually(t, "refused", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.forwarding == forwardRefused
	})
	for range 3 {
		if w.syn(w.freePort(), guestTTL-1) {
			t.Error("a request was taken")
		}
	}
	if len(asked) != 1 || len(w.waiting) != 0 {
		t.Errorf("asked %d times; %d wait", len(asked), len(w.waiting))
	}
	if !w.syn(w.freePort(), guestTTL) {
		t.Error("a request of the guest's own was left to the stack path")
	}
}

// TestSpliceForwardedCircuitBreaker: rules that are in the way of what is forwarded say nothing of the guest's own connections.
func TestSpliceForwardedCircuitBreaker(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	w.forwarding = forwardReady
	for i := range uint16(forwarder.SpliceFailures) {
		if !w.syn(20000+i, guestTTL-1) || w.syn(20000+i, guestTTL-1) {
			t.Fatalf("request %d: left to the stack, or taken when it was sent again", i)
		}
	}
	if w.syn(21000, guestTTL-1) {
		t.Error("the next is tried all the same")
	}
	if !w.syn(21001, guestTTL) {
		t.Error("a request of the guest's own was left to the stack path")
	}
}

// TestSpliceForwardClosed: the answer may come when the Path has been closed.
func TestSpliceForwardClosed(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	_, ready := w.waitForReady()
	w.syn(w.freePort(), guestTTL-1)
	w.stop()
	ready <- nil
	forwardlab.Eventually(t, "noted", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.forwarding == forwardReady && len(w.requests) == 0
	})
}
