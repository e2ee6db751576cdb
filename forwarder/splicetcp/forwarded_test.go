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

// waitForReady makes Inside.Forward return what the test sends to ready; calls receives a value for each call.
func (w *world) waitForReady() (calls chan struct{}, ready chan error) {
	calls, ready = make(chan struct{}, 10), make(chan error)
	w.in.Forward = func() error {
		calls <- struct{}{}
		return <-ready
	}
	return calls, ready
}

// TestSpliceForwarded: the first request waits until the namespace is ready, and is not lost.
func TestSpliceForwarded(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	calls, ready := w.waitForReady()
	if !w.syn(w.freePort(), guestTTL) || len(calls) != 0 {
		t.Error("a request of the guest's own is not taken, or starts the preparation")
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
	// The test's connection replaces the re-injected SYN and must not come before it: it would belong to no request.
	w.waitReinjected(port)
	c := w.connect(port)
	defer c.Close()
	w.waitFor("joined", func(s stats) bool { return s.Active == 1 })
	if len(calls) != 1 {
		t.Errorf("Forward was called %d times", len(calls))
	}
	port = w.freePort()
	if !w.syn(port, 127) {
		t.Fatal("the next request was left to the stack path")
	}
	c2 := w.connect(port)
	defer c2.Close()
	w.waitFor("joined", func(s stats) bool { return s.Active == 2 })
}

// TestSpliceForwardRefused: Forward is called once, and the stack path takes all further requests.
func TestSpliceForwardRefused(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	calls, ready := w.waitForReady()
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
	if len(calls) != 1 || len(w.waiting) != 0 {
		t.Errorf("called %d times; %d wait", len(calls), len(w.waiting))
	}
	if !w.syn(w.freePort(), guestTTL) {
		t.Error("a request of the guest's own was left to the stack path")
	}
}

// TestSpliceForwardedCircuitBreaker: failures of forwarded connections do not open the breaker of the guest's own connections.
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
		t.Error("the next is tried nevertheless")
	}
	if !w.syn(21001, guestTTL) {
		t.Error("a request of the guest's own was left to the stack path")
	}
}

// TestSpliceForwardClosed: Forward may return after the Path has been closed.
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
