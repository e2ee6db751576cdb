package flow

import (
	"net/netip"
	"time"

	"rootlessnet/internal/lockrank"
)

// ID identifies a flow within one Table for as long as the Table exists. No two flows have the same one; 0 is none.
type ID uint64

// Counters are the values that change during a flow. ToHost is what the guest's side has sent, ToGuest what it has received:
// bytes of payload, and packets where the datapath sees packets (0 for TCP).
type Counters struct {
	State                         State
	BytesToHost, BytesToGuest     uint64
	PacketsToHost, PacketsToGuest uint64
}

// Carrier is the datapath's side of a flow. Its methods are called from any goroutine, without the table's lock, and also
// shortly after the flow was removed.
type Carrier interface {
	// Counters reads the counters.
	Counters() Counters
	// Kill ends the flow at once: a TCP connection by a reset to both ends, a datagram flow by removing it from its tables. It does not
	// wait for the end, which the datapath reports by Table.Remove as for any other end.
	Kill()
}

// Entry is one flow in a Table. The datapath fills in the exported fields before Add and does not change them afterwards.
type Entry struct {
	Key       Key
	Direction Direction
	Datapath  Datapath
	// Peer is the other end as the host sees it. It differs from the address in Key where the guest sees the
	// gateway's address in place of the host's loopback, or of a client that the guest cannot see under its own address.
	Peer netip.AddrPort
	// Egress is how the datapath has the flow's packets leave the host, in a comparable type of its own; nil where that
	// does not matter once the flow is open.
	Egress any
	// Started is set by Add.
	Started time.Time

	carrier    Carrier
	id         ID
	prev, next *Entry // guarded by Table.mu; next is nil when the entry is in no table
}

// Info describes a flow at one moment.
type Info struct {
	ID        ID
	Key       Key
	Direction Direction
	Datapath  Datapath
	Peer      netip.AddrPort
	Egress    any
	Started   time.Time
	Counters
}

func (e *Entry) info(c Counters) Info {
	return Info{ID: e.id, Key: e.Key, Direction: e.Direction, Datapath: e.Datapath, Peer: e.Peer, Egress: e.Egress, Started: e.Started, Counters: c}
}

// Table holds the live flows of one gateway. Make one with NewTable.
type Table struct {
	mu       lockrank.Mutex
	root     Entry // of the list; root.next is the oldest flow
	lastID   ID
	count    int
	watchers []*Watcher
}

// NewTable returns an empty table.
func NewTable() *Table {
	t := &Table{}
	t.mu.SetRank(lockrank.FlowTable)
	t.root.next, t.root.prev = &t.root, &t.root
	return t
}

// Add enters e, which must be in no table. c answers for the flow until Remove, and for a moment after it.
func (t *Table) Add(e *Entry, c Carrier) {
	e.Started = time.Now()
	e.carrier = c
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastID++
	t.count++
	e.id = t.lastID
	e.prev, e.next = t.root.prev, &t.root
	e.prev.next, t.root.prev = e, e
	if len(t.watchers) > 0 {
		t.notify(Event{Started, e.info(Counters{})})
	}
}

// Remove removes e. last are its final counters, for the watchers. It does nothing for an entry that is in no table.
func (t *Table) Remove(e *Entry, last Counters) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.next == nil {
		return
	}
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
	t.count--
	if len(t.watchers) > 0 {
		last.State = Ended
		t.notify(Event{Finished, e.info(last)})
	}
}

// Len is the number of live flows.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}

// entries copies the list, the oldest flow first.
func (t *Table) entries() []*Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := make([]*Entry, 0, t.count)
	for e := t.root.next; e != &t.root; e = e.next {
		l = append(l, e)
	}
	return l
}

// List describes every live flow, the oldest first.
func (t *Table) List() []Info {
	l := t.entries()
	out := make([]Info, len(l))
	for i, e := range l {
		out[i] = e.info(e.carrier.Counters())
	}
	return out
}

// Kill ends the flow with the given id. It is false when there is none.
func (t *Table) Kill(id ID) bool { return t.KillIf(func(i *Info) bool { return i.ID == id }) > 0 }

// KillIf ends every flow for which match returns true, and returns how many. match gets no counters: reading them costs a lock
// of each flow's datapath.
func (t *Table) KillIf(match func(*Info) bool) (killed int) {
	for _, e := range t.entries() {
		if i := e.info(Counters{}); match(&i) {
			e.carrier.Kill()
			killed++
		}
	}
	return killed
}
