package dns

import "time"

const (
	// maxInflight is the number of queries in flight, UDP and TCP together. Each occupies a goroutine and one descriptor per
	// queried upstream: at most a few thousand of the usual hard limit of 524,288. A guest that sends 100 queries a second while
	// all upstreams are silent has 450 in flight.
	maxInflight = 512
	// maxTCPConns is the number of connections served at the same time: dnsmasq's default of 20 is known to be too low, and each
	// may occupy a message of 64 KiB.
	maxTCPConns = 64
	// maxPipelined is the number of queries of one connection in flight (RFC 7766, 6.2.1.1); more wait in the socket's buffer.
	maxPipelined = 16
	// maxMismatched is how many non-matching answers are ignored before the attempt ends: so many come only from an attacker.
	maxMismatched = 32

	minMessage = 12    // bytes of a header (RFC 1035, 4.1.1)
	maxMessage = 65535 // bytes of a message (RFC 1035, 4.2.2)
	minUDPSize = 512   // bytes every client accepts (RFC 1035, 4.2.1)
	// defaultMaxUDP is the largest answer over UDP in bytes, even if the client's EDNS record permits more: BIND's default, and
	// the recommendation of RFC 6891, 6.2.5.
	defaultMaxUDP = 4096
	// maxUDPQuery is the size in bytes above which a query is sent to the upstream over TCP, since it could be fragmented: the
	// payload that fits the minimum MTU of IPv6 (DNS Flag Day 2020).
	maxUDPQuery = 1232
	ourUDPSize  = 1232 // announced in the resolver's own OPT records

	// localTTL is the TTL of local names in seconds. It is short because a sandbox's names change while it runs.
	localTTL = 5

	// maxResolvConf is how many bytes of the host's file are read; real files have a few hundred.
	maxResolvConf = 64 << 10
	// maxNameservers is how many servers of a file are used: MAXNS of glibc's <resolv.h>, so that host and guest use the same.
	maxNameservers = 3
)

// timing holds all durations, so that tests can use shorter ones.
type timing struct {
	stagger    time.Duration // without an answer, after which the next upstream is queried as well
	retransmit time.Duration // without an answer, after which a datagram is retransmitted to the same upstream
	tcpDial    time.Duration // limit for connecting to an upstream by TCP, before UDP is tried instead
	total      time.Duration // limit for one query; below the 5 s after which libcs retry
	prefer     time.Duration // for which an upstream that answered in place of a silent one is queried first
	tcpIdle    time.Duration // limit between two messages of a client (RFC 7766, 6.2.3: a few seconds)
	tcpMessage time.Duration // limit for reading or writing one message
	poll       time.Duration // interval of checks of the host's file
}

var defaultTiming = timing{
	stagger:    time.Second,
	retransmit: 1500 * time.Millisecond,
	tcpDial:    2 * time.Second,
	total:      4500 * time.Millisecond,
	prefer:     time.Minute,
	tcpIdle:    10 * time.Second,
	tcpMessage: 5 * time.Second,
	poll:       time.Second,
}
