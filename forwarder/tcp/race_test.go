//go:build race

package tcp

import "time"

// raceSlack is what the race detector may add to a time limit.
const raceSlack = 400 * time.Millisecond
