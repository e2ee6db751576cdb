package spin

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// group returns a Group with a pipe in it, and what makes that ready and empties it again.
func group(t *testing.T) (g *Group, ring, quiet func()) {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC) // not NewGroup: there may be one processor only
	if err != nil {
		t.Fatal(err)
	}
	g = &Group{ep: ep, base: time.Now()}
	g.last.Store(-int64(time.Hour))
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	g.Add(p[0])
	t.Cleanup(func() {
		g.Remove(p[0])
		unix.Close(p[0])
		unix.Close(p[1])
		g.Close()
	})
	var b [1]byte
	return g, func() { unix.Write(p[1], b[:]) }, func() { unix.Read(p[0], b[:]) }
}

// soonTurn is a turn that came soon after the one before.
func soonTurn(g *Group, m *Member) {
	g.last.Store(g.now())
	m.Begin()
}

func TestWhatIsThereForAnotherEndsTheLook(t *testing.T) {
	g, ring, quiet := group(t)
	m := g.Member()
	soonTurn(g, &m)
	ring()
	if !m.Wait(nil) {
		t.Error("something was there, and not seen")
	}
	if m.Wait(nil) {
		t.Error("one turn, two looks: nobody would ever sleep")
	}
	quiet()
	soonTurn(g, &m)
	if m.Wait(nil) {
		t.Error("nothing was there, and seen")
	}
}

func TestOwnComesFirst(t *testing.T) {
	g, _, _ := group(t)
	m := g.Member()
	soonTurn(g, &m)
	n := 0
	if !m.Wait(func() bool { n++; return n == 3 }) || n != 3 {
		t.Error("asked", n, "times, want 3")
	}
}

func TestNobodyLooksWhenItPromisesNothing(t *testing.T) {
	g, ring, _ := group(t)
	ring()
	m := g.Member()
	if m.Wait(nil) {
		t.Error("before the first turn")
	}
	m.Begin()
	if m.Wait(nil) {
		t.Error("after a turn out of the blue")
	}
	soonTurn(g, &m)
	m.Bulk()
	if m.Wait(nil) {
		t.Error("in bulk")
	}
	last := g.last.Load()
	g.last.Store(last - int64(soon))
	m.Begin()
	if m.Wait(nil) {
		t.Error("after a pause")
	}
}

// TestOneTurnMakesAnotherOnesSoon: an exchange goes by several members.
func TestOneTurnMakesAnotherOnesSoon(t *testing.T) {
	g, ring, _ := group(t)
	a, b := g.Member(), g.Member()
	for range 1000 { // the machine may pause for longer than an exchange
		a.Begin()
		a.Wait(nil)
		if b.Begin(); b.soon {
			break
		}
	}
	ring()
	if !b.Wait(nil) {
		t.Error("b does not look")
	}
}

func TestLookEnds(t *testing.T) {
	g, _, _ := group(t)
	m := g.Member()
	least := time.Hour
	for range 20 {
		soonTurn(g, &m)
		begin := time.Now()
		m.Wait(nil)
		least = min(least, time.Since(begin))
	}
	if least < Time || least > 20*Time {
		t.Errorf("a look in vain takes %v, want %v", least, Time)
	}
}

func TestNilGroup(t *testing.T) {
	var g *Group
	g.Add(0)
	g.Remove(0)
	m := g.Member()
	m.Begin()
	if m.Wait(func() bool { return true }) {
		t.Error("it spins")
	}
	g.Close()
}

func TestWaitDoesNotAllocate(t *testing.T) {
	g, ring, _ := group(t)
	ring()
	m := g.Member()
	if n := testing.AllocsPerRun(100, func() { soonTurn(g, &m); m.Wait(nil) }); n != 0 {
		t.Error(n, "allocations")
	}
}
