//go:build !race

package tcp

const raceSlack = 0
