package forwardlab

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/race"
)

// Eventually waits, for Patience, for what happens on another goroutine.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// Receive takes the next value from c, which must come within Patience.
func Receive[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		t.Fatalf("no %s within %v", what, Patience)
	}
	return v
}

// ReceiveNothing fails when a value comes from c within QuietFor.
func ReceiveNothing[T any](t testing.TB, c <-chan T, what string) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("unexpected %s: %+v", what, v)
	case <-time.After(QuietFor):
	}
}

// cpu is the processor time this process has used.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Quietly fails when this process takes more than a tenth of a processor for half a second.
func Quietly(t testing.TB, what string) {
	t.Helper()
	const watch = 500 * time.Millisecond
	time.Sleep(50 * time.Millisecond)
	before := cpu(t)
	time.Sleep(watch)
	if used := cpu(t) - before; used > watch/10 {
		t.Errorf("%s: %v of processor time in %v", what, used, watch)
	}
}

// RaceSlack is what the race detector may add to a time limit.
var RaceSlack = race.Extra(400 * time.Millisecond)
