//go:build !race

package sandbox

// raceBuild says whether this program was built with the race detector.
const raceBuild = false
