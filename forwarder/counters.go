package forwarder

import "sync/atomic"

// TCPCounters count what the TCP datapaths do, since the start. They are updated without a lock.
type TCPCounters struct {
	Outbound     atomic.Uint64 // connections joined that the guest has opened
	Inbound      atomic.Uint64 // connections joined that clients of published ports have opened
	DialErrors   atomic.Uint64 // the host's connects that were refused, unreachable or timed out
	DialLimit    atomic.Uint64 // SYNs ignored because too many attempts are under way, in all or to their destination
	DialRetries  atomic.Uint64 // dials repeated because there was no free descriptor
	AcceptErrors atomic.Uint64 // accepts that failed because descriptors ran out
	Waiting      atomic.Int64  // clients of published ports that are not connected to the guest yet
}
