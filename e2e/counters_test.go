package e2e

import (
	"encoding/json"
	"testing"
)

// counter is the name of a counter of rootless-net stats. Those here are there even when they are zero.
type counter string

const (
	tcpConnections    counter = "now.tcp.connections"
	tcpSpliced        counter = "now.tcp.spliced" // of those connections, by the splice path
	tcpOut            counter = "tcp.out"
	tcpBytesOut       counter = "tcp.bytes-out"
	tcpBytesIn        counter = "tcp.bytes-in"
	tcpSplicedOut     counter = "tcp.spliced-bytes-out"
	tcpReinjectFails  counter = "tcp.reinject-failed" // re-injected SYNs that the kernel inside did not answer
	tcpSYNLimited     counter = "tcp.syn-limited"     // SYNs dropped after many that came to nothing
	tcpGivenUp        counter = "tcp.given-up"        // connects that the guest gave up, after the host's connection stood
	tcpBuffers        counter = "now.tcp.buffers"     // bytes granted to the buffers of the stack path
	tcpBuffersRefused counter = "tcp.buffers-refused" // growths of them that were refused
	udpFlows          counter = "now.udp.flows"
)

// counters are the counters of a sandbox at one time.
type counters struct {
	testing.TB
	values map[string]uint64
}

// of is one counter; a name that the sandbox does not have fails the test, which would otherwise read as zero.
func (c counters) of(name counter) uint64 {
	c.Helper()
	n, ok := c.values[string(name)]
	if !ok {
		c.Fatalf("there is no counter %s: %v", name, c.values)
	}
	return n
}

// counters reads the live counters of the sandbox.
func (s *sandbox) counters() counters {
	s.Helper()
	var stats struct {
		Counters map[string]uint64 `json:"counters"`
	}
	if err := json.Unmarshal([]byte(s.manage("stats", "-o", "json", s.name)), &stats); err != nil {
		s.Fatal(err)
	}
	return counters{s.T, stats.Counters}
}

// counter reads one live counter of the sandbox.
func (s *sandbox) counter(name counter) uint64 {
	s.Helper()
	return s.counters().of(name)
}
