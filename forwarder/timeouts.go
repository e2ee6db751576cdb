package forwarder

import "time"

// Idle timeouts of datagram flows: those of nf_conntrack. nf_conntrack_udp_timeout is 30 s, but _stream is 120 s since
// Linux 4.18 and was 180 s before, which is what other helpers and RFC 4787 4.3 (not less than two minutes) settled on.
const (
	UnrepliedTimeout = 30 * time.Second  // packets were seen in one direction only
	AssuredTimeout   = 180 * time.Second // packets were seen in both
	EchoTimeout      = 30 * time.Second  // ICMP echo

	// SweepInterval is how late a timeout may be noticed: a sixth of the shortest.
	SweepInterval = 5 * time.Second
)
