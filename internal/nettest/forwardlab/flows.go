package forwardlab

import (
	"net"
	"net/netip"
	"testing"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
)

// What each side sends in an exchange. The side that has opened the flow sends the Question.
const (
	Question = "ping"
	Reply    = "pong!"
)

// FlowWorld is one datapath, on which TestFlows opens flows of one direction and protocol.
type FlowWorld struct {
	Forwarder *forwarder.Forwarder
	Budget    *fdbudget.Budget
	Datapath  flow.Datapath
	Direction flow.Direction
	Proto     flow.Proto
	// Open opens a flow to a destination of its own and has one exchange over it.
	Open func(t testing.TB) *Flow
	// Forbid has the policy refuse the destination of f, and of no other flow; nil: no policy judges these flows.
	Forbid func(f *Flow)
	// RemoveSource has the policy refuse the source address of the guest; nil where Forbid is nil.
	RemoveSource func()
	// Stop closes the datapath.
	Stop func()
}

// Flow is a live flow of a FlowWorld.
type Flow struct {
	Key  flow.Key
	Peer netip.AddrPort
	// Exchange sends Question and receives Reply. After a datagram flow was killed it opens a new one.
	Exchange func(t testing.TB)
	// Ends are both ends of a TCP connection. The side that has opened it is the first.
	Ends [2]net.Conn
}

// NewTCPFlow describes a connection and has the first exchange.
func NewTCPFlow(t testing.TB, key flow.Key, peer netip.AddrPort, opener, server net.Conn) *Flow {
	t.Helper()
	f := &Flow{Key: key, Peer: peer, Ends: [2]net.Conn{opener, server}}
	f.Exchange = func(t testing.TB) {
		t.Helper()
		SendString(t, opener, Question)
		Expect(t, server, Question)
		SendString(t, server, Reply)
		Expect(t, opener, Reply)
	}
	f.Exchange(t)
	return f
}

// info is the flow with the key k in the table; false: there is none.
func (w *FlowWorld) info(k flow.Key) (flow.Info, bool) {
	for _, i := range w.Forwarder.Flows.List() {
		if i.Key == k {
			return i, true
		}
	}
	return flow.Info{}, false
}

// open opens a flow and waits until it is in the table with all its bytes.
func (w *FlowWorld) open(t testing.TB) (*Flow, flow.Info) {
	t.Helper()
	f := w.Open(t)
	var i flow.Info
	Eventually(t, "the flow is in the table, with what it has carried", func() (there bool) {
		i, there = w.info(f.Key)
		return there && i.Counters == w.counters(i, 1)
	})
	return f, i
}

// counters are those of a flow after exchanges. TCP has no packets.
func (w *FlowWorld) counters(i flow.Info, exchanges uint64) flow.Counters {
	c := flow.Counters{State: flow.Established, BytesToHost: exchanges * uint64(len(Question)), BytesToGuest: exchanges * uint64(len(Reply))}
	if w.Direction == flow.Inbound {
		c.BytesToHost, c.BytesToGuest = c.BytesToGuest, c.BytesToHost
	}
	if w.Proto == flow.ICMP { // a reply repeats the request
		c.BytesToGuest = c.BytesToHost
	}
	if w.Proto != flow.TCP {
		c.PacketsToHost, c.PacketsToGuest = exchanges, exchanges
	}
	return c
}

// ended checks that the flow has ended: a connection was reset at both ends, and the flow is not in the table.
func (w *FlowWorld) ended(t testing.TB, f *Flow, id flow.ID) {
	t.Helper()
	if w.Proto == flow.TCP {
		for _, c := range f.Ends {
			ExpectReset(t, c)
		}
	}
	Eventually(t, "the table has forgotten the flow", func() bool {
		i, there := w.info(f.Key)
		return !there || i.ID != id
	})
}

// lives checks that the flow goes on.
func (w *FlowWorld) lives(t testing.TB, f *Flow, id flow.ID) {
	t.Helper()
	f.Exchange(t)
	if i, there := w.info(f.Key); !there || i.ID != id {
		t.Errorf("%v is not in the table any more, or is another flow: %+v", f.Key, i)
	}
}

// judged reports whether a policy judges the flows.
func (w *FlowWorld) judged() bool { return w.Forbid != nil }

// TestFlows checks that a datapath keeps the contract of the table of flows. newWorld makes a world for each of the tests.
func TestFlows(t *testing.T, newWorld func(t testing.TB) *FlowWorld) {
	t.Run("list", func(t *testing.T) {
		w := newWorld(t)
		f, first := w.open(t)
		_, second := w.open(t)
		if n := w.Forwarder.Flows.Len(); n != 2 || first.ID == second.ID {
			t.Errorf("%d flows, %d and %d", n, first.ID, second.ID)
		}
		for _, i := range []flow.Info{first, second} {
			if i.Direction != w.Direction || i.Datapath != w.Datapath || i.Key.Proto != w.Proto || i.Started.IsZero() {
				t.Errorf("described as %+v", i)
			}
		}
		if first.Peer != f.Peer {
			t.Errorf("the peer is %v, want %v", first.Peer, f.Peer)
		}
		f.Exchange(t)
		Eventually(t, "the second exchange is counted", func() bool {
			i, _ := w.info(f.Key)
			return i.Counters == w.counters(i, 2)
		})
	})
	t.Run("kill", func(t *testing.T) {
		w := newWorld(t)
		f, i := w.open(t)
		other, o := w.open(t)
		if !w.Forwarder.Flows.Kill(i.ID) {
			t.Fatal("there is no such flow")
		}
		w.ended(t, f, i.ID)
		w.lives(t, other, o.ID)
		if w.Forwarder.Flows.Kill(i.ID) {
			t.Error("a flow that has ended was killed")
		}
		if w.Proto != flow.TCP { // the next datagram opens a new one
			f.Exchange(t)
			if again, there := w.info(f.Key); !there || again.ID == i.ID {
				t.Errorf("after another datagram: %v, %+v", there, again)
			}
		}
	})
	t.Run("kill everything", func(t *testing.T) {
		w := newWorld(t)
		f, i := w.open(t)
		g, j := w.open(t)
		if n := w.Forwarder.Flows.KillIf(func(*flow.Info) bool { return true }); n != 2 {
			t.Errorf("%d flows were killed", n)
		}
		w.ended(t, f, i.ID)
		w.ended(t, g, j.ID)
		Eventually(t, "every descriptor is returned", func() bool { return Taken(w.Budget) == 0 })
	})
	t.Run("rules that forbid the destination", func(t *testing.T) {
		w := newWorld(t)
		f, i := w.open(t)
		other, o := w.open(t)
		if !w.judged() {
			if n := w.Forwarder.Rejudge(0); n != 0 {
				t.Errorf("%d flows were ended that no rule forbids", n)
			}
			w.lives(t, f, i.ID)
			w.lives(t, other, o.ID)
			return
		}
		w.Forbid(f)
		if n := w.Forwarder.Rejudge(0); n != 1 {
			t.Errorf("%d flows were ended", n)
		}
		w.ended(t, f, i.ID)
		w.lives(t, other, o.ID)
		if d := w.Forwarder.Decide(f.Key, 1); d.Action != forwarder.Refuse {
			t.Errorf("the destination is not refused: %+v", d)
		}
	})
	t.Run("an address of the guest that was removed", func(t *testing.T) {
		w := newWorld(t)
		if !w.judged() {
			t.Skip("no policy judges these flows")
		}
		f, i := w.open(t)
		w.RemoveSource()
		n := w.Forwarder.Rejudge(0)
		if w.Proto == flow.TCP { // it may come back
			if n != 0 {
				t.Errorf("%d connections were ended", n)
			}
			w.lives(t, f, i.ID)
			return
		}
		if n != 1 {
			t.Errorf("%d flows were ended", n)
		}
		w.ended(t, f, i.ID)
	})
	t.Run("watch", func(t *testing.T) {
		w := newWorld(t)
		watch := w.Forwarder.Flows.Watch(16)
		defer watch.Close()
		f, i := w.open(t)
		if e := Receive(t, watch.C(), "event"); e.Kind != flow.Started || e.Info.ID != i.ID || e.Info.Key != f.Key {
			t.Errorf("the start: %+v", e)
		}
		w.Forwarder.Flows.Kill(i.ID)
		want := w.counters(i, 1)
		want.State = flow.Ended
		if e := Receive(t, watch.C(), "event"); e.Kind != flow.Finished || e.Info.ID != i.ID || e.Info.Counters != want {
			t.Errorf("the end: %+v, want %+v", e, want)
		}
		if watch.Lost() != 0 || len(watch.C()) != 0 {
			t.Errorf("%d events were lost, %d were not expected", watch.Lost(), len(watch.C()))
		}
	})
	t.Run("half-closed and closed", func(t *testing.T) {
		w := newWorld(t)
		if w.Proto != flow.TCP {
			t.Skip("a datagram flow is not closed")
		}
		f, i := w.open(t)
		if err := f.Ends[0].(Stream).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		ExpectEOF(t, f.Ends[1])
		Eventually(t, "it is half-closed", func() bool {
			i, there := w.info(f.Key)
			return there && i.State == flow.HalfClosed
		})
		if err := f.Ends[1].(Stream).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		ExpectEOF(t, f.Ends[0])
		Eventually(t, "the table is empty", func() bool { return w.Forwarder.Flows.Len() == 0 })
		Eventually(t, "every descriptor is returned", func() bool { return Taken(w.Budget) == 0 })
		if w.Forwarder.Flows.Kill(i.ID) {
			t.Error("a flow that has ended was killed")
		}
	})
	t.Run("the datapath is closed", func(t *testing.T) {
		w := newWorld(t)
		w.open(t)
		w.open(t)
		w.Stop()
		Eventually(t, "the table is empty", func() bool { return w.Forwarder.Flows.Len() == 0 })
		Eventually(t, "every descriptor is returned", func() bool { return Taken(w.Budget) == 0 })
	})
}
