//go:build lockrank

package lockrank

import "testing"

// panicWhenViolated has a violation panic, which the test can recover.
func panicWhenViolated(t *testing.T) {
	end := violated
	t.Cleanup(func() { violated = end })
	violated = func(text string) { panic(text) }
}
