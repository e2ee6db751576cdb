//go:build race

package forwardlab

import "time"

// RaceSlack is what the race detector may add to a time limit.
const RaceSlack = 400 * time.Millisecond
