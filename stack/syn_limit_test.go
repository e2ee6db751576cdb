package stack

import (
	"hash/maphash"
	"net/netip"
	"testing"
	"time"
)

func TestSYNLimit(t *testing.T) {
	dst := netip.MustParseAddrPort("192.0.2.1:80")
	admitted := func(l *synLimit, to func(i int) netip.AddrPort, n int, now time.Duration, after func(netip.AddrPort)) (admitted int) {
		for i := range n {
			if d := to(i); l.admit(d, now) {
				admitted++
				after(d)
			}
		}
		return admitted
	}
	one := func(int) netip.AddrPort { return dst }
	many := func(i int) netip.AddrPort { return netip.AddrPortFrom(dst.Addr(), uint16(i)) }
	nothing := func(netip.AddrPort) {}

	l := &synLimit{seed: maphash.MakeSeed()}
	if n := admitted(l, one, 50_000, time.Second, nothing); n != destSYNs {
		t.Errorf("%d of a burst to one destination were admitted, want %d", n, destSYNs)
	}
	if n := admitted(l, one, 50_000, 2*time.Second, nothing); n != int(time.Second/destSYNPace) {
		t.Errorf("%d a second to one destination", n)
	}
	// Another destination, unless it has the same bucket, is not concerned.
	others := 0
	for i := range 100 {
		if l.admit(many(i), 2*time.Second) {
			others++
		}
	}
	if others < 90 {
		t.Errorf("beside it %d of 100 to others were admitted", others)
	}

	l = &synLimit{seed: maphash.MakeSeed()}
	if n := admitted(l, many, 60_000, time.Second, nothing); n != allSYNs {
		t.Errorf("%d of a burst to many destinations were admitted, want %d", n, allSYNs)
	}
	if n := admitted(l, many, 60_000, 2*time.Second, nothing); n != int(time.Second/allSYNPace) {
		t.Errorf("%d a second to many destinations", n)
	}

	// What is established does not count, and leaves no credit.
	l = &synLimit{seed: maphash.MakeSeed()}
	if n := admitted(l, one, 50_000, time.Second, l.giveBack); n != 50_000 {
		t.Errorf("%d of 50,000 that were established were admitted", n)
	}
	for range 10_000 {
		l.giveBack(dst)
	}
	if n := admitted(l, one, 50_000, 2*time.Second, nothing); n != destSYNs {
		t.Errorf("after many that were established, %d of a burst were admitted, want %d", n, destSYNs)
	}
}
