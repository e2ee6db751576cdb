// Package race reports, at compile time, whether the program was built with the race detector (go build -race). The race
// detector slows a program several times, makes sync.Pool drop items at random and maps a large shadow memory, so some
// tests allow more time or skip a bound, and one start-up step tolerates an error.
package race

import "time"

// Extra is what a test adds to a time limit: d in a build with the race detector, otherwise 0.
func Extra(d time.Duration) time.Duration {
	if Enabled {
		return d
	}
	return 0
}
