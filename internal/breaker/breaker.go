package breaker

import (
	"sync"
	"time"
)

// Breaker counts failures in a row. Its zero value is not usable: Failures and Pause must be set. Safe for concurrent use.
type Breaker struct {
	// Failures in a row open the breaker.
	Failures int
	// Pause is how long it stays open. Afterwards the next attempt decides: one more failure opens it again.
	Pause time.Duration

	mu    sync.Mutex
	row   int       // failures since the last success; guarded by mu
	until time.Time // guarded by mu
}

// Open says that an attempt would most likely fail.
func (b *Breaker) Open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.openLocked()
}

func (b *Breaker) openLocked() bool { return b.row >= b.Failures && time.Now().Before(b.until) }

// Fail notes a failure. It is true when this one has opened the breaker.
func (b *Breaker) Fail() (opened bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.row++; b.row < b.Failures || b.openLocked() {
		return false
	}
	b.until = time.Now().Add(b.Pause)
	return true
}

// Succeed notes a success, which ends the row of failures.
func (b *Breaker) Succeed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.row = 0
}

// EndPause has the next attempt made at once, as after the pause.
func (b *Breaker) EndPause() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until = time.Time{}
}
