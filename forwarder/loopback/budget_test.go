package loopback

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest/forwardlab"
)

// smallLimit is a limit of descriptors of which smallTotal may be taken.
const smallLimit, smallTotal = 16, 8

// Without descriptors clients wait in the backlog, and are served when descriptors are free again.
func TestRelayBudgetIsUsedUp(t *testing.T) {
	l := forwardlab.Listen(t, "127.0.0.1:0")
	w, tcp, _ := newLimitedRelay(t, nil, forwardlab.AP(l.Addr().String()).Port(), smallLimit)
	var clients, servers []*net.TCPConn
	for range smallTotal / descriptors {
		clients = append(clients, forwardlab.Call(t, netip.AddrPort{}, tcp))
		servers = append(servers, forwardlab.Accept(t, l))
	}
	late := forwardlab.Call(t, netip.AddrPort{}, tcp)
	time.Sleep(forwardlab.QuietFor)
	if s := w.Stats(); s.Connections != smallTotal/descriptors || forwardlab.Taken(w.budget) != smallTotal {
		t.Errorf("without descriptors: %+v, %d taken", s, forwardlab.Taken(w.budget))
	}
	forwardlab.Quietly(t, "waiting for descriptors")
	forwardlab.Reset(t, clients[0])
	forwardlab.ExpectReset(t, servers[0])
	s := forwardlab.Accept(t, l)
	forwardlab.SendString(t, late, "x")
	forwardlab.Expect(t, s, "x")
}

// A datagram of a client for which there is no descriptor is dropped and counted; the flows that exist go on.
func TestRelayBudgetIsUsedUpByDatagrams(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w, _, udp := newLimitedRelay(t, nil, h.At.Port(), smallLimit)
	var clients []*forwardlab.Host
	for range smallTotal {
		c := forwardlab.ListenUDP(t, "127.0.0.1:0")
		clients = append(clients, c)
		c.Send(t, udp, "x")
		h.Receive(t)
	}
	forwardlab.ListenUDP(t, "127.0.0.1:0").Send(t, udp, "one too many")
	forwardlab.Eventually(t, "the drop is counted", func() bool { return w.Stats().DroppedDatagrams == 1 })
	h.ReceiveNothing(t)
	if n := forwardlab.Taken(w.budget); n != smallTotal {
		t.Errorf("%d descriptors are taken", n)
	}
	clients[0].Send(t, udp, "y")
	if s, _ := h.Receive(t); s != "y" {
		t.Errorf("the server got %q", s)
	}
}

// Clients of published ports, all in the backlog at once, take no more descriptors than the budget has.
func TestRelayPublishedClientsStayInTheBudget(t *testing.T) {
	l := forwardlab.Listen(t, "127.0.0.1:0")
	w, _, _ := newLimitedRelay(t, new(testPool), 1, smallLimit)
	if !w.budget.Take(fdbudget.UDP, 1) {
		t.Fatal("the budget is too small")
	}
	defer w.budget.Give(fdbudget.UDP, 1)
	hl := forwardlab.Listen(t, "127.0.0.1:0")
	const clients = 10
	for range clients {
		forwardlab.Call(t, netip.AddrPort{}, forwardlab.AP(hl.Addr().String()))
	}
	p, err := w.f.PublishTCP(hl, forwarder.Target{Addr: netip.AddrPortFrom(netip.Addr{}, forwardlab.AP(l.Addr().String()).Port())}, w.Relay)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const spare = (smallTotal - 1) / descriptors
	for range spare {
		forwardlab.Accept(t, l)
	}
	time.Sleep(forwardlab.QuietFor)
	if n := forwardlab.Taken(w.budget); n > smallTotal || w.Stats().Connections != spare {
		t.Errorf("%d descriptors are taken of %d: %+v", n, smallTotal, w.Stats())
	}
}

// Failures, and what is under way at the end, leave no descriptor taken: newLimitedRelay checks that.
func TestRelayBudgetAfterFailures(t *testing.T) {
	l := forwardlab.Listen(t, "127.0.0.1:0")
	port := forwardlab.AP(l.Addr().String()).Port()
	_ = l.Close()
	pool := new(testPool)
	w, tcp, udp := newRelay(t, pool, port)
	for range 3 {
		if _, err := shout("tcp", tcp.String(), "x"); !forwardlab.IsReset(err) {
			t.Errorf("a client of a closed port: %v", err)
		}
		forwardlab.ListenUDP(t, "127.0.0.1:0").Send(t, udp, "x")
	}
	forwardlab.Eventually(t, "three flows of datagrams", func() bool { return w.Stats().Flows == 3 })
	if n := forwardlab.Taken(w.budget); n != 3 {
		t.Errorf("%d descriptors are taken", n)
	}
	w.mu.Lock()
	pool.empty = true
	w.mu.Unlock()
	forwardlab.Call(t, netip.AddrPort{}, tcp) // waits for a socket
	forwardlab.Eventually(t, "the client is accepted", func() bool { return forwardlab.Taken(w.budget) == 3+descriptors })
	w.Close()
	if n := forwardlab.Taken(w.budget); n != 0 {
		t.Errorf("%d descriptors are taken after Close", n)
	}
}
