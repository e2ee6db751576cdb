package netns

import "slices"

// undo collects the steps that restore the state of a namespace.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

// run takes the steps, that of the last change first.
func (u *undo) run() {
	for _, f := range slices.Backward(*u) {
		f()
	}
	*u = nil
}
