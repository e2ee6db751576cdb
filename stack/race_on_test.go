//go:build race

package stack

// raceEnabled: the race detector makes sync.Pool drop things at random.
const raceEnabled = true
