package breaker

import (
	"testing"
	"time"
)

func TestBreaker(t *testing.T) {
	b := New(3, time.Hour)
	for i := range 3 {
		if b.Open() {
			t.Fatalf("open after %d failures", i)
		}
		if opened := b.Fail(); opened != (i == 2) {
			t.Errorf("failure %d: opened %v", i, opened)
		}
	}
	if !b.Open() || b.Fail() {
		t.Error("it is not open, or opens twice")
	}
	b.EndPause()
	if b.Open() {
		t.Error("open after the pause")
	}
	if !b.Fail() || !b.Open() {
		t.Error("one failure after the pause does not open it again")
	}
	b.Succeed()
	if b.Open() || b.Fail() {
		t.Error("a success is not the end of the row")
	}
}
