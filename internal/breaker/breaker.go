package breaker

import (
	"time"

	"rootlessnet/internal/lockrank"
)

// Breaker counts failures in a row. Make one with New. Safe for concurrent use.
type Breaker struct {
	failures int
	pause    time.Duration

	mu    lockrank.Mutex
	row   int       // failures since the last success; guarded by mu
	until time.Time // guarded by mu
}

// New returns a closed breaker. So many failures in a row open it, for the time of pause. Afterwards the next attempt decides: one
// more failure opens it again.
func New(failures int, pause time.Duration) *Breaker {
	b := &Breaker{failures: failures, pause: pause}
	b.mu.SetRank(lockrank.Breaker)
	return b
}

// Open reports whether attempts should be skipped, because they would most likely fail.
func (b *Breaker) Open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.openLocked()
}

func (b *Breaker) openLocked() bool { return b.row >= b.failures && time.Now().Before(b.until) }

// Fail records a failure. It returns true if this one has opened the breaker.
func (b *Breaker) Fail() (opened bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.row++; b.row < b.failures || b.openLocked() {
		return false
	}
	b.until = time.Now().Add(b.pause)
	return true
}

// Succeed records a success, which ends the row of failures.
func (b *Breaker) Succeed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.row = 0
}

// EndPause ends the pause: the next attempt is made at once.
func (b *Breaker) EndPause() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until = time.Time{}
}
