package splicetcp

import (
	"testing"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// guestSYN is the guest's request with a sequence number.
func (w *world) guestSYN(port uint16, seq uint32) *stack.SYN {
	return &stack.SYN{Flow: w.flow(port), TTL: guestTTL, Seq: seq, Frame: make([]byte, 54)}
}

// A reset in answer to the SYN-ACK ends the request and the host's connection, at once, and opens no circuit breaker.
func TestSpliceGuestGivesUp(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	const times = 10 // more than open the breaker
	for i := range uint32(times) {
		port := w.freePort()
		if !w.HandleSYN(w.guestSYN(port, 1000*i)) {
			t.Fatalf("request %d was left to the stack path", i)
		}
		h := forwardlab.Accept(t, w.remote)
		w.HandleReset(w.guestSYN(port, 1000*i+2)) // not in answer to this SYN-ACK
		if s, there := w.request(port); !there || s != reinjected {
			t.Fatalf("a reset with another sequence number: state %v, there %v", s, there)
		}
		w.HandleReset(w.guestSYN(port, 1000*i+1))
		if _, there := w.request(port); there {
			t.Fatal("the request is still there")
		}
		forwardlab.ExpectReset(t, h)
	}
	if s := w.Stats(); s.GivenUp != times || s.ReinjectFailed != 0 || forwardlab.Taken(w.budget) != 0 || w.own.Open() {
		t.Errorf("%+v, %d descriptors taken, breaker open: %v", s, forwardlab.Taken(w.budget), w.own.Open())
	}
}

// A reset while the host's connect is under way is not in answer to any SYN-ACK of this path.
func TestSpliceResetWhileDialling(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	server := w.fullServer()
	port := w.freePort()
	w.HandleSYN(w.guestSYN(port, 7))
	w.HandleReset(w.guestSYN(port, 8))
	if s, there := w.request(port); !there || s != dialling {
		t.Fatalf("state %v, there %v", s, there)
	}
	server.drain(t)
	w.waitReinjected(port)
	w.HandleReset(w.guestSYN(port, 8))
	if _, there := w.request(port); there || forwardlab.Taken(w.budget) != 0 {
		t.Errorf("the request is still there: %v; %d descriptors taken", there, forwardlab.Taken(w.budget))
	}
}

// A SYN with another sequence number is not the first one sent again but another connection, which begins anew.
func TestSplicePortUsedAgainAfterGivingUp(t *testing.T) {
	w := newWorld(t)
	if w == nil {
		return
	}
	port := w.freePort()
	w.HandleSYN(w.guestSYN(port, 7))
	first := forwardlab.Accept(t, w.remote)
	if !w.HandleSYN(w.guestSYN(port, 70000)) {
		t.Error("the second connection was left to the stack path")
	}
	second := forwardlab.Accept(t, w.remote)
	forwardlab.ExpectReset(t, first)
	w.HandleReset(w.guestSYN(port, 8)) // in answer to the SYN-ACK of the first
	c := w.connect(port)
	forwardlab.SendString(t, c, "x")
	forwardlab.Expect(t, second, "x")
	if s := w.Stats(); s.GivenUp != 1 || s.ReinjectFailed != 0 || s.Active != 1 {
		t.Errorf("%+v", s)
	}
}
