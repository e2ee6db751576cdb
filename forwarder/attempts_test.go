package forwarder_test

import (
	"net/netip"
	"testing"

	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
)

// One destination never gets all attempts, and the last one gets its minimum.
func TestAttemptsShares(t *testing.T) {
	const most, minShare = 1000, 64
	f := forwarder.New(forwarder.Config{Budget: fdbudget.New(4 * most)})
	take := func(a byte) (n int) {
		for f.Attempts.Begin(netip.AddrFrom4([4]byte{a})) {
			n++
		}
		return n
	}
	first, second := take(1), take(2)
	if first < 300 || first > 500 || second < 150 || second > 400 {
		t.Errorf("shares %d, %d of %d", first, second, most)
	}
	total := first + second
	for a := byte(3); a < 20; a++ {
		total += take(a)
	}
	if total != most || f.Attempts.Len() != most {
		t.Errorf("%d attempts in all, and %d counted, want %d", total, f.Attempts.Len(), most)
	}
	for range first {
		f.Attempts.End(netip.AddrFrom4([4]byte{1}))
	}
	if n := take(99); n < minShare {
		t.Errorf("after the attempts of the first destination have ended %d are free", n)
	}
}

// However few descriptors there are, a destination can be tried.
func TestAttemptsWithFewDescriptors(t *testing.T) {
	f := forwarder.New(forwarder.Config{Budget: fdbudget.New(4)})
	dst := netip.MustParseAddr("192.0.2.1")
	if !f.Attempts.Begin(dst) {
		t.Fatal("no attempt at all")
	}
	if f.Attempts.Begin(netip.MustParseAddr("192.0.2.2")) {
		t.Error("more attempts than descriptors")
	}
	f.Attempts.End(dst)
	if f.Attempts.Len() != 0 {
		t.Errorf("%d under way", f.Attempts.Len())
	}
}
