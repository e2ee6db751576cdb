package dns

import "time"

const (
	// maxInflight queries are being worked on at once, UDP and TCP together. Each holds a goroutine and, for each
	// upstream asked, one fd: at most a few thousand of the usual hard limit of 524,288. A guest that asks 100 names a
	// second of upstreams that are all silent has 450 in flight.
	maxInflight = 512
	// maxTCPConns connections are served at once: dnsmasq's default (20) is known to be too few, and each may hold a
	// message of 64 KiB.
	maxTCPConns = 64
	// maxPipelined queries of one connection are worked on at once (RFC 7766, 6.2.1.1); more wait in the socket.
	maxPipelined = 16
	// maxMismatched wrong answers end an attempt: nobody but a forger sends that many.
	maxMismatched = 32

	minMessage = 12    // bytes of a header (RFC 1035, 4.1.1)
	maxMessage = 65535 // bytes of a message (RFC 1035, 4.2.2)
	minUDPSize = 512   // bytes every client takes (RFC 1035, 4.2.1)
	// defaultMaxUDP is the most an answer over UDP may have, whatever the client's EDNS says: BIND's and the RFC 6891
	// (6.2.5) upper choice.
	defaultMaxUDP = 4096
	// maxUDPQuery: a query longer than this goes to the upstream over TCP, for it would be fragmented (the payload
	// that fits IPv6's least MTU; DNS Flag Day 2020).
	maxUDPQuery = 1232
	ourUDPSize  = 1232 // what our own OPT records announce

	// localTTL, in seconds, is short because a sandbox's names change while it runs.
	localTTL = 5

	// maxResolvConf bytes of the host's file are read; real ones have a few hundred.
	maxResolvConf = 64 << 10
	// maxNameservers of a file are used: MAXNS of glibc's <resolv.h>, so that the host and the guest agree.
	maxNameservers = 3
)

// timing holds the durations, so that tests need not wait for them.
type timing struct {
	stagger    time.Duration // silence after which the next upstream is asked too
	retransmit time.Duration // silence after which a datagram is sent to the same upstream again
	tcpDial    time.Duration // to connect to an upstream, before UDP is tried instead
	total      time.Duration // for one query; below the 5 s after which libcs ask again
	prefer     time.Duration // for which an upstream that took over is asked first
	tcpIdle    time.Duration // between two messages of a client (RFC 7766, 6.2.3: a few seconds)
	tcpMessage time.Duration // for one message, in or out
	poll       time.Duration // between two looks at the host's file
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
