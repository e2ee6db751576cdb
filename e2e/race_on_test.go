//go:build race

package e2e

// slow says that the programs run under the race detector: load is reduced, and times are longer.
const slow = true
