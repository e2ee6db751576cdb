//go:build !lockrank

package lockrank

import "testing"

// panicWhenViolated has nothing to change: this build checks nothing.
func panicWhenViolated(*testing.T) {}
