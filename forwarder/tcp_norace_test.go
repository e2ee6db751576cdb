//go:build !race

package forwarder

const raceSlack = 0
