package flow

import (
	"net/netip"
	"sync"
	"testing"
)

// carrier is a datapath of the test: it counts calls and removes the flow when the table kills it.
type carrier struct {
	Entry
	t      *Table
	mu     sync.Mutex // as a datapath's lock: held around Add and Remove
	bytes  uint64
	killed int
}

func (c *carrier) Counters() Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Counters{State: Established, BytesToHost: c.bytes}
}

func (c *carrier) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed++
	c.t.Remove(&c.Entry, Counters{BytesToHost: c.bytes})
}

func add(t *Table, port uint16) *carrier {
	c := &carrier{t: t, bytes: uint64(port)}
	c.Key = Key{Proto: TCP, Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, 100}), port),
		Dst: netip.MustParseAddrPort("192.0.2.1:80")}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Add(&c.Entry, c)
	return c
}

func TestListIsInOrderAndComplete(t *testing.T) {
	table := NewTable()
	a, b, c := add(table, 1), add(table, 2), add(table, 3)
	table.Remove(&b.Entry, Counters{})
	table.Remove(&b.Entry, Counters{}) // once more changes nothing
	l := table.List()
	if table.Len() != 2 || len(l) != 2 || l[0].Key != a.Key || l[1].Key != c.Key {
		t.Fatalf("the list is %v", l)
	}
	if l[0].ID == l[1].ID || l[0].ID == 0 || l[1].BytesToHost != 3 || l[1].State != Established || l[0].Started.IsZero() {
		t.Errorf("described as %+v", l)
	}
}

func TestKillEndsTheFlowThatIsNamed(t *testing.T) {
	table := NewTable()
	a, b := add(table, 1), add(table, 2)
	id := table.List()[1].ID
	if !table.Kill(id) || a.killed != 0 || b.killed != 1 {
		t.Errorf("killed %d, %d times", a.killed, b.killed)
	}
	if table.Kill(id) {
		t.Error("a flow that has ended was killed")
	}
	if n := table.KillIf(func(i *Info) bool { return i.Key.Src.Port() == 1 }); n != 1 || table.Len() != 0 {
		t.Errorf("%d killed, %d left", n, table.Len())
	}
}

func TestWatchReportsStartAndEnd(t *testing.T) {
	table := NewTable()
	w := table.Watch(2)
	c := add(table, 7)
	table.Remove(&c.Entry, Counters{BytesToHost: 99})
	first, second := <-w.C(), <-w.C()
	if first.Kind != Started || second.Kind != Finished || second.Info.BytesToHost != 99 || second.Info.State != Ended || first.Info.ID != second.Info.ID {
		t.Errorf("events %+v, %+v", first, second)
	}
	for range 5 { // no goroutine reads the events: the datapath must not block, and the loss is counted
		add(table, 8)
	}
	if w.Lost() != 3 {
		t.Errorf("%d events lost, want 3", w.Lost())
	}
	w.Close()
	w.Close()
	add(table, 9)
	n := 0
	for range w.C() {
		n++
	}
	if n != 2 {
		t.Errorf("%d events after the watch was closed", n)
	}
}

// All operations at once, for the race detector and for the lock order in doc.go.
func TestConcurrentUse(t *testing.T) {
	table := NewTable()
	var wg sync.WaitGroup
	for i := range uint16(4) {
		wg.Go(func() {
			for range 500 {
				c := add(table, i)
				table.List()
				table.KillIf(func(f *Info) bool { return f.Key == c.Key })
			}
		})
	}
	w := table.Watch(16)
	wg.Wait()
	w.Close()
	if table.Len() != 0 {
		t.Errorf("%d flows are left", table.Len())
	}
}

func BenchmarkAddRemove(b *testing.B) {
	table := NewTable()
	for i := range 10000 {
		add(table, uint16(i))
	}
	c := &carrier{t: table}
	b.ReportAllocs()
	for b.Loop() {
		table.Add(&c.Entry, c)
		table.Remove(&c.Entry, Counters{})
	}
}
