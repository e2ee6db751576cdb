package state

import (
	"fmt"
	"testing"
)

// BenchmarkCreateBesideEnded measures what a start pays for the sandboxes that are kept.
func BenchmarkCreateBesideEnded(b *testing.B) {
	for _, n := range []int{0, maxEnded} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d, err := Open(b.TempDir() + "/r")
			if err != nil {
				b.Fatal(err)
			}
			for range n {
				e, err := d.Create("")
				if err != nil {
					b.Fatal(err)
				}
				e.Update(func(r *Record) { r.Status, r.Keep = Running, true })
				e.End(0, nil)
			}
			for b.Loop() {
				e, err := d.Create("")
				if err != nil {
					b.Fatal(err)
				}
				e.Close()
			}
		})
	}
}
