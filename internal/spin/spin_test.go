package spin

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// group returns a Group, even on a machine with one processor.
func group(t *testing.T) *Group {
	t.Helper()
	g, err := newGroup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// pipeMember is a Member on the read end of a pipe. Its handler reads one byte and returns result.
type pipeMember struct {
	*Member
	r, w   *os.File
	runs   atomic.Int32 // of the handler, those that found a byte
	result Result
	buf    [1]byte
	ended  chan error // what Run returned
}

func newPipeMember(t *testing.T, g *Group) *pipeMember {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	b := &pipeMember{r: os.NewFile(uintptr(p[0]), "r"), w: os.NewFile(uintptr(p[1]), "w"), result: Progress, ended: make(chan error, 1)}
	var err error
	if b.Member, err = g.NewMember(b.r, b.readByte); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Leave()
		b.r.Close()
		b.w.Close()
	})
	return b
}

func (b *pipeMember) readByte() Result {
	if n, _ := unix.Read(b.FD(), b.buf[:]); n <= 0 {
		return Idle
	}
	b.runs.Add(1)
	return b.result
}

// writeByte makes the member ready.
func (b *pipeMember) writeByte(t *testing.T) {
	t.Helper()
	if _, err := b.w.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

func (b *pipeMember) awaitRuns(t *testing.T, runs int32) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); b.runs.Load() < runs; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("the handler has read %d bytes, want %d", b.runs.Load(), runs)
		}
	}
}

// joined adds b to the group's epoll set without a goroutine in Run: only busy polling can run its handler.
func (b *pipeMember) joined(t *testing.T) *pipeMember {
	t.Helper()
	if err := b.join(); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRunCallsHandlerForEveryEvent(t *testing.T) {
	for name, g := range map[string]*Group{"with a group": group(t), "with a nil group": nil} {
		t.Run(name, func(t *testing.T) {
			b := newPipeMember(t, g)
			go func() { b.ended <- b.Run() }()
			for i := range int32(100) {
				b.writeByte(t)
				b.awaitRuns(t, i+1)
			}
			b.Leave()
			b.r.Close()
			if err := <-b.ended; err == nil {
				t.Error("Run returned no error after its file was closed")
			}
			b.Leave() // a second call does nothing
		})
	}
}

func TestDoneEndsRun(t *testing.T) {
	b := newPipeMember(t, group(t))
	b.result = Done
	b.writeByte(t)
	if err := b.Run(); err != nil {
		t.Error("Run:", err)
	}
}

func TestRunOfClosedFile(t *testing.T) {
	b := newPipeMember(t, group(t))
	b.r.Close()
	if err := b.Run(); err == nil {
		t.Error("Run returned no error")
	}
	if _, err := group(t).NewMember(b.r, b.readByte); err == nil {
		t.Error("NewMember returned no error")
	}
}

// TestBusyPollRunsHandlersOfOtherMembers: neither member has a goroutine in Run.
func TestBusyPollRunsHandlersOfOtherMembers(t *testing.T) {
	g := group(t)
	a, b := newPipeMember(t, g).joined(t), newPipeMember(t, g).joined(t)
	a.writeByte(t)
	b.writeByte(t)
	g.busyPoll(a.Member, Progress, true)
	if a.runs.Load() != 1 || b.runs.Load() != 1 {
		t.Errorf("the handlers have read %d and %d bytes, want one each", a.runs.Load(), b.runs.Load())
	}
}

func TestNoBusyPollWithoutRecentRunOrInBulk(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	b.writeByte(t)
	g.busyPoll(b.Member, Progress, false)
	if b.runs.Load() != 0 {
		t.Error("polled although no other run of the group was recent")
	}
	g.busyPoll(b.Member, Bulk, true)
	if b.runs.Load() != 0 {
		t.Error("polled although the last result was Bulk")
	}
}

// TestBulkMemberIsServedByItsOwnGoroutine: busy polling runs its handler once at most, namely before the first Bulk result.
func TestBulkMemberIsServedByItsOwnGoroutine(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	b.result = Bulk
	b.writeByte(t)
	b.writeByte(t)
	g.busyPoll(b.Member, Progress, true)
	g.busyPoll(b.Member, Progress, true)
	if n := b.runs.Load(); n != 1 {
		t.Error(n, "runs by busy polling, want 1")
	}
	b.result = Progress
	b.RunOnce()
	b.writeByte(t)
	g.busyPoll(b.Member, Progress, true)
	if n := b.runs.Load(); n != 3 {
		t.Error("busy polling does not run the handler although the bulk transfer is over")
	}
}

// TestDoneReachesRun: another goroutine runs the handler that returns Done, and its event is consumed with it.
func TestDoneReachesRun(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g)
	var last, done atomic.Bool // last: the next run consumes the last event
	b.handler = func() Result {
		if done.Load() {
			return Done
		}
		if last.Swap(false) {
			done.Store(true)
			return Done
		}
		return Idle
	}
	go func() { b.ended <- b.Run() }()
	time.Sleep(10 * time.Millisecond) // until Run sleeps in the poller
	last.Store(true)
	if result := b.tryHandler(); result != Done {
		t.Fatal("result", result)
	}
	select {
	case err := <-b.ended:
		if err != nil {
			t.Error("Run:", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run does not return")
	}
}

// TestYieldLetsOtherGoroutinesRun: with one processor they would otherwise wait until the busy-poll ends.
func TestYieldLetsOtherGoroutinesRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	var ran atomic.Bool
	go ran.Store(true)
	for range yields {
		g.busyPoll(b.Member, Yield, true)
	}
	if !ran.Load() {
		t.Error("the other goroutine did not run")
	}
}

// yields is how often a goroutine must yield for another one to run for certain: runtime.Gosched puts the caller into the
// global queue, and once in 61 times the scheduler looks there first and takes the caller itself.
const yields = 2

func TestHandlerRunsAreExclusive(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	b.writeByte(t)
	b.mu.Lock() // as if another goroutine were running the handler
	g.busyPoll(b.Member, Progress, true)
	b.mu.Unlock()
	if b.runs.Load() != 0 {
		t.Error("two goroutines ran the handler at once")
	}
}

func TestBlockingMemberIsServedByRunOnly(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g)
	m, err := g.NewBlockingMember(b.r, b.readByte)
	if err != nil {
		t.Fatal(err)
	}
	b.Member = m
	b.joined(t).writeByte(t)
	begin := time.Now()
	g.busyPoll(b.Member, Progress, true)
	if b.runs.Load() != 0 {
		t.Error("busy polling ran the handler")
	}
	if d := time.Since(begin); d > 20*pollTime {
		t.Errorf("the busy-poll lasted %v, although a member is ready whose own goroutine must be woken", d)
	}
	go func() { b.ended <- b.Run() }()
	b.awaitRuns(t, 1)
}

// TestLeave: afterwards the handler is not run and the file, of which a duplicate is open, is not in the epoll set.
func TestLeave(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	duplicate, err := unix.Dup(b.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(duplicate)
	b.Leave()
	b.writeByte(t)
	g.busyPoll(b.Member, Progress, true)
	if b.runs.Load() != 0 || b.RunOnce() != Done {
		t.Error("the handler ran after Leave")
	}
	var e [1]unix.EpollEvent
	if n, err := unix.EpollWait(g.ep, e[:], 0); n != 0 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
	c := newPipeMember(t, g).joined(t) // gets the id that b had
	c.writeByte(t)
	g.busyPoll(c.Member, Progress, true)
	if c.runs.Load() != 1 {
		t.Error("the handler of the member that has the id now did not run")
	}
}

func TestWakeWithoutAnEvent(t *testing.T) {
	b := newPipeMember(t, group(t))
	var runs atomic.Int32
	b.handler = func() Result {
		runs.Add(1)
		return Idle
	}
	go func() { b.ended <- b.Run() }()
	for i := range int32(10) {
		for end := time.Now().Add(5 * time.Second); runs.Load() <= i; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("the handler did not run")
			}
		}
		b.Wake()
	}
}

// TestRunOfOneMemberIsRecentForAnother: an exchange passes through several members.
func TestRunOfOneMemberIsRecentForAnother(t *testing.T) {
	g := group(t)
	a, b := newPipeMember(t, g), newPipeMember(t, g)
	for range 1000 { // repeated, as the machine may pause this process for longer than exchangeGap
		a.writeByte(t)
		b.writeByte(t)
		a.step(0)
		g.busyPoll(a.Member, a.Member.result, a.recent)
		if b.step(0); b.recent {
			break
		}
	}
	if !b.recent {
		t.Error("a run right after one of another member does not count as recent")
	}
	time.Sleep(2 * exchangeGap)
	b.writeByte(t)
	if b.step(0); b.recent {
		t.Error("a run long after the last one counts as recent")
	}
}

func TestBusyPollEndsAfterPollTime(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	shortest := time.Hour
	for range 20 {
		begin := time.Now()
		g.busyPoll(b.Member, Progress, true)
		shortest = min(shortest, time.Since(begin))
	}
	if shortest < pollTime || shortest > 20*pollTime {
		t.Errorf("a busy-poll without an event takes %v, want %v", shortest, pollTime)
	}
}

// TestBusyPollEndsAfterMaxPoll: also when there is always an event.
func TestBusyPollEndsAfterMaxPoll(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var ran atomic.Bool
	b.handler = func() Result { return Progress }
	b.writeByte(t) // which this handler never reads
	done := make(chan struct{})
	go func() {
		defer close(done)
		go ran.Store(true)
		for range yields {
			g.busyPoll(b.Member, Progress, true)
		}
		if !ran.Load() {
			t.Error("no other goroutine ran in the meantime")
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the busy-poll does not end")
	}
}

func TestNilGroup(t *testing.T) {
	var g *Group
	g.busyPoll(newPipeMember(t, nil).Member, Progress, true)
	g.Close()
}

func TestBusyPollDoesNotAllocate(t *testing.T) {
	g := group(t)
	b := newPipeMember(t, g).joined(t)
	one := []byte{1}
	if n := testing.AllocsPerRun(100, func() { b.w.Write(one); b.step(0); g.busyPoll(b.Member, Progress, true) }); n != 0 {
		t.Error(n, "allocations")
	}
}
