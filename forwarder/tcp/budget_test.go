package tcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest/forwardlab"
)

// smallLimit is a limit of descriptors of which smallTotal may be taken.
const smallLimit, smallTotal = 16, 8

// A connection for which there is no descriptor in the budget is dialled when one is free, and so is a client of a
// published port, which waits in the backlog meanwhile.
func TestTCPBudgetIsUsedUp(t *testing.T) {
	w := newWorld(t, func(c *worldConfig) { c.limit = smallLimit })
	l := forwardlab.NewServer(t, "127.0.0.1:0")
	var guests []*forwardlab.GuestConn
	for range smallTotal {
		guests = append(guests, w.guest.MustDial(l.At))
		l.Accept(t)
	}
	inside := w.guest.Listen(served(forwardlab.Guest4))
	p := w.publish("127.0.0.1:0")
	dialled := make(chan error, 1)
	go func() {
		c, err := w.guest.Dial(l.At, 2*forwardlab.Patience)
		if err == nil {
			defer c.Reset()
		}
		dialled <- err
	}()
	h := forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	forwardlab.Eventually(t, "the dial waits for a descriptor", func() bool { return w.Stats().DialRetries > 0 })
	time.Sleep(forwardlab.QuietFor)
	if s := w.Stats(); s.Outbound != smallTotal || s.Inbound != 0 || w.f.TCP.Waiting.Load() != 0 || forwardlab.Taken(w.budget) != smallTotal {
		t.Errorf("without descriptors: %+v, %d taken", s, forwardlab.Taken(w.budget))
	}
	forwardlab.Quietly(t, "waiting for descriptors")
	for _, g := range guests[:3] { // one for the dial, and two, without which no client is accepted
		g.Reset()
	}
	if err := forwardlab.Receive(t, dialled, "end of the dial"); err != nil {
		t.Errorf("the guest's connection: %v", err)
	}
	g, _ := forwardlab.Answer(t, inside)
	forwardlab.SendString(t, h, "x")
	forwardlab.Expect(t, g, "x")
}

// A burst of clients takes no more descriptors than the budget has.
func TestTCPClientsStayInTheBudget(t *testing.T) {
	w := newWorld(t, func(c *worldConfig) { c.limit = smallLimit })
	const spare = 3
	if !w.budget.Take(fdbudget.UDP, 4) || !w.budget.Take(fdbudget.Splice, smallTotal-4-spare) {
		t.Fatal("the budget is too small")
	}
	defer w.budget.Give(fdbudget.UDP, 4)
	defer w.budget.Give(fdbudget.Splice, smallTotal-4-spare)
	inside := w.guest.Listen(served(forwardlab.Guest4))
	hl := forwardlab.Listen(t, "127.0.0.1:0")
	const clients = 20
	for range clients { // all are in the backlog when the first is accepted
		forwardlab.Call(t, netip.AddrPort{}, forwardlab.AP(hl.Addr().String()))
	}
	w.publishPort(hl, servedPort)
	accepted := make(chan net.Conn, clients)
	go func() {
		for {
			c, err := inside.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range spare - 1 { // a client may need two descriptors, so the last one remains
		forwardlab.Receive(t, accepted, "client")
	}
	time.Sleep(forwardlab.QuietFor)
	if n := forwardlab.Taken(w.budget); n != smallTotal-1 || len(accepted) != 0 {
		t.Errorf("%d descriptors are taken of %d, and %d further clients are served", n, smallTotal, len(accepted))
	}
}

// Failures of every kind, and what is under way at the end, leave no descriptor taken: newWorld checks that.
func TestTCPBudgetAfterFailures(t *testing.T) {
	w := newWorld(t, nil)
	closed := forwardlab.NewServer(t, "127.0.0.1:0")
	_ = closed.Close()
	for range 3 {
		if _, err := w.guest.Dial(closed.At, forwardlab.Patience); err == nil {
			t.Error("connected to a closed port")
		}
		if _, err := w.guest.Dial(forwardlab.AP("169.254.169.254:80"), forwardlab.Patience); err == nil {
			t.Error("connected to what the policy prohibits")
		}
	}
	p := w.publish("127.0.0.1:0")
	if h, err := net.Dial("tcp", p.Addr().String()); err == nil { // nothing listens inside
		forwardlab.ExpectReset(t, h)
		_ = h.Close()
	}
	forwardlab.Eventually(t, "every descriptor is returned", func() bool { return forwardlab.Taken(w.budget) == 0 })
	w.pair()
	w.guest.Listen(served(forwardlab.Guest4))
	l := forwardlab.NewServer(t, "127.0.0.1:0")
	w.wire.OnlySYNs.Store(true) // from here on no handshake is completed
	forwardlab.Call(t, netip.AddrPort{}, p.Addr())
	_, _ = w.guest.Dial(l.At, 50*time.Millisecond)
	l.Accept(t)
	forwardlab.Eventually(t, "three are under way or joined", func() bool { return w.budget.Taken(fdbudget.Stack) == 3 })
	w.stop()
	forwardlab.Eventually(t, "every descriptor is returned", func() bool { return forwardlab.Taken(w.budget) == 0 })
}
