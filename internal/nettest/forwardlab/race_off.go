//go:build !race

package forwardlab

// RaceSlack is what the race detector may add to a time limit.
const RaceSlack = 0
