package udp

import "sync/atomic"

// DropReason is why a datagram or echo was dropped. Verdicts of the policy are counted separately, by their reasons.
type DropReason uint8

// The reasons; the names returned by String are those shown in statistics.
const (
	DropUnsolicited  DropReason = iota // from an address the guest has not sent to
	DropTTL                            // time to live used up at the gateway
	DropSendBuffer                     // the host's send buffer or queue was full
	DropTooBig                         // larger than the path's MTU and not to be fragmented
	DropUnreachable                    // the host's kernel refused it at once: no route, filtered, wrong
	DropNoSocket                       // no descriptor or memory for a socket
	DropPingDenied                     // no permission for a ping socket
	DropNoPort                         // no port of the gateway is free for the client
	DropFlowEvicted                    // a flow, not a datagram, that was removed because a cap was reached
	DropGuestWrite                     // the stack did not take it
	DropGuestError                     // the guest's ICMP error, which cannot be passed on
	DropErrorRate                      // an ICMP error for the guest, above the rate limit
	DropUnknownError                   // an ICMP error about a flow that has ended
	DropMalformed                      // a message of the host's kernel that is not an echo reply
	DropClosed                         // after Close
	DropGroup                          // to a multicast group towards which the host has no interface but its loopback
	numDropReasons
)

var dropNames = [numDropReasons]string{"unsolicited", "ttl", "send-buffer", "too-big", "unreachable", "no-socket",
	"ping-denied", "no-port", "flow-evicted", "guest-write", "guest-error", "error-rate", "unknown-error", "malformed", "closed", "multicast"}

func (r DropReason) String() string { return dropNames[r] }

// counters are updated without a lock.
type counters struct {
	drops    [numDropReasons]atomic.Uint64
	dns      atomic.Uint64
	errors   atomic.Uint64
	evicted  atomic.Uint64
	outPkts  atomic.Uint64
	outBytes atomic.Uint64
	inPkts   atomic.Uint64
	inBytes  atomic.Uint64
}

func (c *counters) drop(r DropReason) { c.drops[r].Add(1) }

// Stats is a snapshot of the counters of a Path.
type Stats struct {
	Drops   map[string]uint64 `json:"drops"`   // by DropReason, zero counts left out
	Sockets int               `json:"sockets"` // outbound and ping sockets open now
	Flows   int               `json:"flows"`   // flows now, those of published ports included
	Evicted uint64            `json:"evicted"` // sockets closed because of a cap or a lack of descriptors

	OutPackets uint64 `json:"out_packets"` // from the guest to the host; each datagram of a GSO batch counts
	OutBytes   uint64 `json:"out_bytes"`   // payload
	InPackets  uint64 `json:"in_packets"`  // from the host to the guest
	InBytes    uint64 `json:"in_bytes"`    // payload
	Errors     uint64 `json:"errors"`      // ICMP errors sent to the guest
	DNS        uint64 `json:"dns"`         // queries passed to the resolver
}

// Stats returns the counters since New. It may be called from any goroutine.
func (x *Path) Stats() Stats {
	c := &x.count
	st := Stats{
		Drops: map[string]uint64{}, Evicted: c.evicted.Load(),
		OutPackets: c.outPkts.Load(), OutBytes: c.outBytes.Load(), InPackets: c.inPkts.Load(), InBytes: c.inBytes.Load(),
		Errors: c.errors.Load(), DNS: c.dns.Load(),
	}
	for r := range numDropReasons {
		if n := c.drops[r].Load(); n > 0 {
			st.Drops[r.String()] = n
		}
	}
	x.mu.Lock()
	st.Sockets, st.Flows = len(x.sockets), len(x.flows)
	x.unlock()
	return st
}
