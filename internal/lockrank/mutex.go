//go:build !lockrank

package lockrank

import "sync"

// Checked reports whether this build checks the order.
const Checked = false

// Mutex is a sync.Mutex. Its zero value is unlocked, and has no rank.
type Mutex struct{ sync.Mutex }

// SetRank gives the lock its place in the order. It must be called before the lock is shared.
func (*Mutex) SetRank(Rank) {}
