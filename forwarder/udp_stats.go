package forwarder

import (
	"net/netip"
	"sync/atomic"
	"time"

	"rootlessnet/policy"
)

// DropReason says why a datagram or echo was not carried on. Verdicts of the policy are counted apart, by its reasons.
type DropReason uint8

// The reasons; the names returned by String are those shown in statistics.
const (
	DropUnsolicited  DropReason = iota // from a remote the guest has not sent to
	DropTTL                            // time to live used up at the gateway
	DropSendBuffer                     // the host's send buffer or queue was full
	DropTooBig                         // larger than the path's MTU and not to be fragmented
	DropUnreachable                    // the host's kernel refused it at once: no route, filtered, wrong
	DropNoSocket                       // no descriptor or memory for a socket
	DropPingDenied                     // no permission for a ping socket
	DropNoPort                         // a client cannot be told from others by any port of the gateway
	DropFlowEvicted                    // not a datagram but a flow that had to go at a cap
	DropGuestWrite                     // the stack did not take it
	DropGuestError                     // the guest's ICMP error, which we cannot pass on
	DropErrorRate                      // an ICMP error for the guest, above the rate limit
	DropUnknownError                   // an ICMP error about a flow that is gone
	DropMalformed                      // a message of the host's kernel that is not an echo reply
	DropClosed                         // after Close
	numDropReasons
)

var dropNames = [numDropReasons]string{"unsolicited", "ttl", "send-buffer", "too-big", "unreachable", "no-socket",
	"ping-denied", "no-port", "flow-evicted", "guest-write", "guest-error", "error-rate", "unknown-error", "malformed", "closed"}

func (r DropReason) String() string { return dropNames[r] }

// counters are updated without a lock.
type counters struct {
	drops    [numDropReasons]atomic.Uint64
	denied   [256]atomic.Uint64 // by policy reason
	dns      atomic.Uint64
	errors   atomic.Uint64
	evicted  atomic.Uint64
	outPkts  atomic.Uint64
	outBytes atomic.Uint64
	inPkts   atomic.Uint64
	inBytes  atomic.Uint64
}

func (c *counters) drop(r DropReason) { c.drops[r].Add(1) }

// DatagramStats is a snapshot of the counters of a Datagrams.
type DatagramStats struct {
	Drops   map[string]uint64 `json:"drops"`   // by DropReason, zero counts left out
	Denied  map[string]uint64 `json:"denied"`  // by policy reason, zero counts left out
	Sockets int               `json:"sockets"` // outbound and ping sockets open now
	Flows   int               `json:"flows"`   // flows now, those of published ports included
	Evicted uint64            `json:"evicted"` // sockets closed because of a cap or for want of descriptors

	OutPackets uint64 `json:"out_packets"` // from the guest to the host; a train counts its datagrams
	OutBytes   uint64 `json:"out_bytes"`   // payload
	InPackets  uint64 `json:"in_packets"`  // from the host to the guest
	InBytes    uint64 `json:"in_bytes"`    // payload
	Errors     uint64 `json:"errors"`      // ICMP errors told to the guest
	DNS        uint64 `json:"dns"`         // queries given to the resolver
}

// Stats returns the counters since NewDatagrams. It may be called from any goroutine.
func (x *Datagrams) Stats() DatagramStats {
	c := &x.count
	st := DatagramStats{
		Drops: map[string]uint64{}, Denied: map[string]uint64{}, Evicted: c.evicted.Load(),
		OutPackets: c.outPkts.Load(), OutBytes: c.outBytes.Load(), InPackets: c.inPkts.Load(), InBytes: c.inBytes.Load(),
		Errors: c.errors.Load(), DNS: c.dns.Load(),
	}
	for r := range numDropReasons {
		if n := c.drops[r].Load(); n > 0 {
			st.Drops[r.String()] = n
		}
	}
	for r := range c.denied {
		if n := c.denied[r].Load(); n > 0 {
			st.Denied[policy.Reason(r).String()] = n
		}
	}
	x.mu.Lock()
	st.Sockets, st.Flows = len(x.sockets), len(x.flows)
	x.unlock()
	return st
}

// DatagramFlow describes one flow at the moment of the snapshot.
type DatagramFlow struct {
	Proto     string         `json:"proto"`     // "udp" or "icmp" (echo of either family)
	Guest     netip.AddrPort `json:"guest"`     // the guest's end; the port is the identifier of an echo flow
	Remote    netip.AddrPort `json:"remote"`    // the other end as the guest sees it
	Peer      netip.AddrPort `json:"peer"`      // the other end as the host sees it
	Published bool           `json:"published"` // opened by a client of a published port
	Assured   bool           `json:"assured"`   // packets went both ways
	Idle      time.Duration  `json:"idle_ns"`   // since the last packet

	OutPackets uint64 `json:"out_packets"`
	OutBytes   uint64 `json:"out_bytes"`
	InPackets  uint64 `json:"in_packets"`
	InBytes    uint64 `json:"in_bytes"`
}

// Flows returns a snapshot of the flow table, in no order. It may be called from any goroutine.
func (x *Datagrams) Flows() []DatagramFlow {
	now := x.now()
	x.mu.Lock()
	defer x.unlock()
	out := make([]DatagramFlow, 0, len(x.flows))
	for k, f := range x.flows {
		name := "udp"
		if k.proto != protoUDP {
			name = "icmp"
		}
		out = append(out, DatagramFlow{
			Proto: name, Guest: k.guest, Remote: k.remote, Peer: f.peer, Published: f.s.pub != nil, Assured: f.assured(),
			Idle: now - f.used, OutPackets: f.outPkts, OutBytes: f.outBytes, InPackets: f.inPkts, InBytes: f.inBytes,
		})
	}
	return out
}
