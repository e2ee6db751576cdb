//go:build !race

package rootlessnet

// raceBuild says that the race detector is in this program.
const raceBuild = false
