package udp

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// smallLimit is a limit of descriptors of which smallTotal may be taken.
const smallLimit, smallTotal = 16, 8

func small(c *worldConfig) { c.limit = smallLimit }

// source is one of the sources of the guest, each of which takes a socket.
func source(i int) netip.AddrPort {
	return netip.AddrPortFrom(forwardlab.Guest4.Addr(), uint16(5000+i))
}

// The socket idle for longest is closed when UDP has used up its share, and when other uses have taken all descriptors.
func TestUDPBudgetEvictsTheOldest(t *testing.T) {
	for _, c := range []struct {
		name   string
		others int // descriptors that others hold
	}{{"share", 0}, {"total", smallTotal - 2}} {
		t.Run(c.name, func(t *testing.T) {
			h := forwardlab.ListenUDP(t, "127.0.0.1:0")
			w := newWorld(t, small)
			if !w.budget.Take(fdbudget.Stack, c.others) {
				t.Fatal("the budget is too small")
			}
			defer w.budget.Give(fdbudget.Stack, c.others)
			most := min(w.budget.Share(fdbudget.UDP), smallTotal-c.others)
			for i := range most + 3 {
				w.send(source(i), h.At, "x")
				h.Receive(t)
				w.advance(time.Second)
				if n := w.Stats().Sockets; n > most || forwardlab.Taken(w.budget) != n+c.others || forwardlab.Taken(w.budget) > smallTotal {
					t.Errorf("%d sockets, %d descriptors taken", n, forwardlab.Taken(w.budget))
				}
			}
			for _, f := range w.f.Flows.List() {
				if f.Key.Src.Port() < 5003 {
					t.Errorf("an older flow stays: %v", f.Key)
				}
			}
			if st := w.Stats(); st.Evicted != 3 || st.Sockets != most {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Where others hold everything, and there is no socket to evict, the datagram is dropped and counted.
func TestUDPBudgetIsUsedUpByOthers(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, small)
	if !w.budget.Take(fdbudget.Stack, smallTotal) {
		t.Fatal("the budget is too small")
	}
	w.send(source(0), h.At, "x")
	h.ReceiveNothing(t)
	if w.drops(DropNoSocket) != 1 || w.Stats().Flows != 0 {
		t.Errorf("%+v", w.Stats())
	}
	w.budget.Give(fdbudget.Stack, smallTotal)
	w.send(source(0), h.At, "y")
	if s, _ := h.Receive(t); s != "y" {
		t.Errorf("the host got %q", s)
	}
}

// Sockets that cannot be made or are refused leave no descriptor taken; newWorld checks it again at the end.
func TestUDPBudgetAfterFailures(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(_ policy.Proto, _, dst netip.AddrPort) policy.Verdict {
			if dst.Port() == 9 {
				return policy.Verdict{Action: policy.Refuse, Reason: policy.Loopback}
			}
			return policy.Verdict{Action: policy.Allow, Dst: dst}
		})
	})
	w.send(source(0), forwardlab.AP("192.0.2.1:9"), "refused")
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	none := lim
	none.Cur = 3 // less than are open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	w.send(source(1), h.At, "no descriptor")
	w.HandleEcho(&stack.Echo{Src: forwardlab.Guest4.Addr(), Dst: netip.MustParseAddr("127.0.0.1"), ID: 1, Payload: []byte("x"), TTL: 64})
	taken := forwardlab.Taken(w.budget)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if taken != 0 || w.Stats().Flows != 0 || w.drops(DropNoSocket)+w.drops(DropPingDenied) != 2 {
		t.Errorf("%d taken, %+v", taken, w.Stats())
	}
	w.send(source(2), h.At, "x")
	h.Receive(t)
	if n := forwardlab.Taken(w.budget); n != 1 {
		t.Errorf("%d taken by one socket", n)
	}
	w.advance(time.Hour)
	w.sweep()
	if n := forwardlab.Taken(w.budget); n != 0 {
		t.Errorf("%d taken after the timeout", n)
	}
}

// A flow that the rules do not allow any more when it has been added to the table is decided again: its
// datagram is not sent, and is counted and answered as one that is refused.
func TestUDPRulesChangeWhileAFlowIsOpened(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	var w *world
	allowed := true
	w = newWorld(t, func(c *worldConfig) {
		c.Policy = forwardlab.JudgeFunc(func(_ policy.Proto, _, dst netip.AddrPort) policy.Verdict {
			if !allowed {
				return policy.Verdict{Action: policy.Prohibit, Reason: policy.Embedded}
			}
			allowed = false
			w.f.Rejudge(0) // before the flow is in the table
			return policy.Verdict{Action: policy.Allow, Dst: dst}
		})
	})
	w.send(forwardlab.Guest4, h.At, "x")
	h.ReceiveNothing(t)
	st := w.Stats()
	if st.Flows != 0 || st.Sockets != 0 || w.f.Flows.Len() != 0 || forwardlab.Taken(w.budget) != 0 {
		t.Errorf("%+v", st)
	}
	if n := w.f.Refused()[policy.Embedded.String()]; n != 1 || len(st.Drops) != 0 {
		t.Errorf("refused %d, drops %v", n, st.Drops)
	}
	if e := forwardlab.Receive(t, w.g.UDPErr, "ICMP error"); e.E != stack.Prohibited(true) { // as the new rules say
		t.Errorf("got %+v", e)
	}
}
