package splicetcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest/forwardlab"
)

// TestSpliceRequestsAreBounded: requests that the guest's kernel does not answer hold the descriptors of a connection each.
func TestSpliceRequestsAreBounded(t *testing.T) {
	w := newLimitedWorld(t, 16)
	if w == nil {
		return
	}
	const most = 3
	others := w.budget.Share(fdbudget.Splice) - most*descriptors
	if !w.budget.Take(fdbudget.Splice, others) {
		t.Fatal("the budget is too small")
	}
	defer w.budget.Give(fdbudget.Splice, others)
	for i := range uint16(5) {
		if taken := w.syn(20000+i, guestTTL); taken != (i < most) {
			t.Errorf("request %d: taken %v", i, taken)
		}
	}
	if s := w.Stats(); s.Dialling != 0 {
		t.Errorf("%d dials are still counted", s.Dialling)
	}
	w.mu.Lock()
	for _, q := range w.requests {
		q.since = q.since.Add(-time.Hour)
	}
	w.mu.Unlock()
	w.sweep()
	if s := w.Stats(); s.ReinjectFailed != most || w.reinjected != 0 || len(w.requests) != 0 {
		t.Errorf("after the sweep: %+v, %d re-injected", s, w.reinjected)
	}
}

// Where the splice path has used up its share, requests are left to the stack path, and clients of published ports are passed on.
func TestSpliceBudgetShareIsUsedUp(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	inside := forwardlab.Listen(t, netip.AddrPortFrom(forwardlab.Here4, 0).String())
	next := newFallback()
	p := w.publish(inside.Addr().(*net.TCPAddr).AddrPort().Port(), next)
	share := w.budget.Share(fdbudget.Splice) - descriptors + 1
	if !w.budget.Take(fdbudget.Splice, share) {
		t.Fatal("the budget is too small")
	}
	if w.syn(w.freePort(), guestTTL) {
		t.Error("a request was taken")
	}
	h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	if client := forwardlab.Receive(t, next.clients, "client that is passed on"); client != forwardlab.LocalAddr(h) {
		t.Errorf("%v was passed on", client)
	}
	if n := w.budget.Taken(fdbudget.Splice); n != share || w.Stats().Dialling != 0 {
		t.Errorf("%d taken, %+v", n, w.Stats())
	}
	w.budget.Give(fdbudget.Splice, share)
	w.pair()
}

// Where no descriptor is left, clients wait in the backlog. Clients that the Path cannot serve are passed on.
func TestSpliceBudgetIsUsedUp(t *testing.T) {
	w := newLimitedWorld(t, 16)
	if w == nil {
		return
	}
	const total, spare = 8, 2
	inside := forwardlab.Listen(t, netip.AddrPortFrom(forwardlab.Here4, 0).String())
	next := newFallback()
	p := w.publish(inside.Addr().(*net.TCPAddr).AddrPort().Port(), next)
	for range (total - spare) / descriptors {
		forwardlab.Call(t, netip.AddrPort{}, p.Addr())
		forwardlab.Accept(t, inside)
	}
	if !w.budget.Take(fdbudget.Stack, 1) { // one of the two that are left for the stack path
		t.Fatal("the budget is too small")
	}
	h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	time.Sleep(forwardlab.QuietFor)
	if n := forwardlab.Taken(w.budget); n > total || len(next.clients) != 0 {
		t.Errorf("%d descriptors taken of %d, %d clients passed on", n, total, len(next.clients))
	}
	w.budget.Give(fdbudget.Stack, 1)
	_, _ = forwardlab.Accept(t, inside).Close(), h.Close()
	w.waitFor("it has ended", func(s stats) bool { return s.Active == (total-spare)/descriptors })
	// A pool without sockets.
	w.pool.empty.Store(true)
	forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	forwardlab.Receive(t, next.clients, "client that is passed on")
	if n := forwardlab.Taken(w.budget); n != total-spare {
		t.Errorf("%d descriptors taken", n)
	}
}
