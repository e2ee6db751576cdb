package spin

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// group returns a Group, also where there is one processor only.
func group(t *testing.T) *Group {
	t.Helper()
	g, err := newGroup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// bell is a member with a pipe, whose turn takes one byte out of it.
type bell struct {
	*Member
	r, w  *os.File
	turns atomic.Int32
	did   Did
	buf   [1]byte
	ended chan error // of Run
}

func newBell(t *testing.T, g *Group) *bell {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	b := &bell{r: os.NewFile(uintptr(p[0]), "r"), w: os.NewFile(uintptr(p[1]), "w"), did: Some, ended: make(chan error, 1)}
	var err error
	if b.Member, err = g.Member(b.r, b.take); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Leave()
		b.r.Close()
		b.w.Close()
	})
	return b
}

func (b *bell) take() Did {
	if n, _ := unix.Read(b.FD(), b.buf[:]); n <= 0 {
		return Nothing
	}
	b.turns.Add(1)
	return b.did
}

func (b *bell) ring(t *testing.T) {
	t.Helper()
	if _, err := b.w.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

func (b *bell) await(t *testing.T, turns int32) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); b.turns.Load() < turns; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("%d turns, want %d", b.turns.Load(), turns)
		}
	}
}

// stand has the group see b, without anybody who waits for it.
func (b *bell) stand(t *testing.T) *bell {
	t.Helper()
	if err := b.enter(); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRunDoesTurns(t *testing.T) {
	for name, g := range map[string]*Group{"in a group": group(t), "in none": nil} {
		t.Run(name, func(t *testing.T) {
			b := newBell(t, g)
			go func() { b.ended <- b.Run() }()
			for i := range int32(100) {
				b.ring(t)
				b.await(t, i+1)
			}
			b.Leave()
			b.r.Close()
			if err := <-b.ended; err == nil {
				t.Error("Run says that all is well with a closed file")
			}
			b.Leave() // again: nothing
		})
	}
}

func TestOverEndsRun(t *testing.T) {
	b := newBell(t, group(t))
	b.did = Over
	b.ring(t)
	if err := b.Run(); err != nil {
		t.Error("Run:", err)
	}
}

func TestRunOfAClosedFile(t *testing.T) {
	b := newBell(t, group(t))
	b.r.Close()
	if err := b.Run(); err == nil {
		t.Error("Run says that all is well")
	}
	if _, err := group(t).Member(b.r, b.take); err == nil {
		t.Error("Member says that all is well")
	}
}

// TestWhoLooksDoesTheTurnsOfOthers: nobody else is there to do them.
func TestWhoLooksDoesTheTurnsOfOthers(t *testing.T) {
	g := group(t)
	a, b := newBell(t, g).stand(t), newBell(t, g).stand(t)
	a.ring(t)
	b.ring(t)
	g.look(a.Member, Some, true)
	if a.turns.Load() != 1 || b.turns.Load() != 1 {
		t.Errorf("turns: %d and %d, want one of each", a.turns.Load(), b.turns.Load())
	}
}

func TestNobodyLooksWhenItPromisesNothing(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	b.ring(t)
	g.look(b.Member, Some, false)
	if b.turns.Load() != 0 {
		t.Error("after a turn out of the blue")
	}
	g.look(b.Member, Bulk, true)
	if b.turns.Load() != 0 {
		t.Error("in bulk")
	}
}

// TestWhoIsInBulkDoesHisTurns: whoever looks does the first one at most, not knowing.
func TestWhoIsInBulkDoesHisTurns(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	b.did = Bulk
	b.ring(t)
	b.ring(t)
	g.look(b.Member, Some, true)
	g.look(b.Member, Some, true)
	if n := b.turns.Load(); n != 1 {
		t.Error(n, "turns by others, want 1")
	}
	b.did = Some
	b.Turn()
	b.ring(t)
	g.look(b.Member, Some, true)
	if n := b.turns.Load(); n != 3 {
		t.Error("not done by others though it is not in bulk any more")
	}
}

// TestOverReachesRun: f may say it once, to somebody else.
func TestOverReachesRun(t *testing.T) {
	g := group(t)
	b := newBell(t, g)
	var once, over atomic.Bool // once: somebody else has been told
	b.turn = func() Did {
		if over.Load() {
			return Over
		}
		if once.Swap(false) {
			over.Store(true)
			return Over
		}
		return Nothing
	}
	go func() { b.ended <- b.Run() }()
	time.Sleep(10 * time.Millisecond) // it sleeps
	once.Store(true)
	if did := b.try(); did != Over {
		t.Fatal("did", did)
	}
	select {
	case err := <-b.ended:
		if err != nil {
			t.Error("Run:", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run sleeps on")
	}
}

// TestOtherGoroutinesGoOnBeforeTheNextLook: they would wait for its end, as there is one processor for them.
func TestOtherGoroutinesGoOnBeforeTheNextLook(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	g := group(t)
	b := newBell(t, g).stand(t)
	var gone atomic.Bool
	go gone.Store(true)
	g.look(b.Member, Handed, true)
	if !gone.Load() {
		t.Error("the other goroutine waits")
	}
}

func TestATurnIsDoneOnceAtATime(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	b.ring(t)
	b.mu.Lock() // it is being done
	g.look(b.Member, Some, true)
	b.mu.Unlock()
	if b.turns.Load() != 0 {
		t.Error("it was done twice at once")
	}
}

func TestAloneIsForRunOnly(t *testing.T) {
	g := group(t)
	b := newBell(t, g)
	m, err := g.Alone(b.r, b.take)
	if err != nil {
		t.Fatal(err)
	}
	b.Member = m
	b.stand(t).ring(t)
	begin := time.Now()
	g.look(b.Member, Some, true)
	if b.turns.Load() != 0 {
		t.Error("somebody else did it")
	}
	if d := time.Since(begin); d > 20*Time {
		t.Errorf("the look lasted %v, though something is there for who must be woken", d)
	}
	go func() { b.ended <- b.Run() }()
	b.await(t, 1)
}

// TestLeave: no turn after it, and nobody looks at the file, of which a copy is open.
func TestLeave(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	copied, err := unix.Dup(b.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(copied)
	b.Leave()
	b.ring(t)
	g.look(b.Member, Some, true)
	if b.turns.Load() != 0 || b.Turn() != Over {
		t.Error("a turn of one who has left")
	}
	var e [1]unix.EpollEvent
	if n, err := unix.EpollWait(g.ep, e[:], 0); n != 0 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
	c := newBell(t, g).stand(t) // in the other's place
	c.ring(t)
	g.look(c.Member, Some, true)
	if c.turns.Load() != 1 {
		t.Error("the next one's turn was not done")
	}
}

func TestWakeWithoutAnEvent(t *testing.T) {
	b := newBell(t, group(t))
	var woken atomic.Int32
	b.turn = func() Did {
		woken.Add(1)
		return Nothing
	}
	go func() { b.ended <- b.Run() }()
	for i := range int32(10) {
		for end := time.Now().Add(5 * time.Second); woken.Load() <= i; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("no turn")
			}
		}
		b.Wake()
	}
}

// TestOneTurnMakesAnotherOnesQuick: an exchange goes by several members.
func TestOneTurnMakesAnotherOnesQuick(t *testing.T) {
	g := group(t)
	a, b := newBell(t, g), newBell(t, g)
	for range 1000 { // the machine may pause for longer than an exchange
		a.ring(t)
		b.ring(t)
		a.step(0)
		g.look(a.Member, a.Member.did, a.quick)
		if b.step(0); b.quick {
			break
		}
	}
	if !b.quick {
		t.Error("a turn soon after another one is not quick")
	}
	time.Sleep(2 * soon * time.Nanosecond)
	b.ring(t)
	if b.step(0); b.quick {
		t.Error("a turn long after another one is quick")
	}
}

func TestLookEnds(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	least := time.Hour
	for range 20 {
		begin := time.Now()
		g.look(b.Member, Some, true)
		least = min(least, time.Since(begin))
	}
	if least < Time || least > 20*Time {
		t.Errorf("a look in vain takes %v, want %v", least, Time)
	}
}

// TestChainEnds: who always finds something goes to Go's poller nevertheless.
func TestChainEnds(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var gone atomic.Bool
	b.turn = func() Did { return Some }
	b.ring(t) // and nobody takes it
	done := make(chan struct{})
	go func() {
		defer close(done)
		go gone.Store(true)
		if g.look(b.Member, Some, true); !gone.Load() {
			t.Error("and no other goroutine goes on meanwhile")
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestNilGroup(t *testing.T) {
	var g *Group
	g.look(newBell(t, nil).Member, Some, true)
	g.Close()
}

func TestLookDoesNotAllocate(t *testing.T) {
	g := group(t)
	b := newBell(t, g).stand(t)
	one := []byte{1}
	if n := testing.AllocsPerRun(100, func() { b.w.Write(one); b.step(0); g.look(b.Member, Some, true) }); n != 0 {
		t.Error(n, "allocations")
	}
}
