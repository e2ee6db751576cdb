package stack

import "sync/atomic"

// DropReason is the reason for which the stack dropped a frame or packet.
type DropReason uint8

// The reasons. String returns their names in statistics.
const (
	DropShort       DropReason = iota // shorter than its headers
	DropMAC                           // unicast to another link address than the gateway's
	DropEtherType                     // VLAN, or neither ARP, IPv4 nor IPv6, or an address family that is off
	DropIPHeader                      // invalid version, header length, total length or checksum of the IP header
	DropIPOptions                     // IPv6 extension headers that a gateway does not process
	DropChecksum                      // wrong transport checksum
	DropTransport                     // invalid TCP data offset, UDP length or ICMP header
	DropDestination                   // TCP or a fragment with a multicast, broadcast, loopback or reserved address
	DropProtocol                      // a transport protocol other than TCP, UDP, ICMP
	DropARP                           // malformed
	DropNDP                           // malformed, or neighbour discovery is off
	DropDHCP                          // malformed, or DHCP is off
	DropICMP                          // an ICMP message or error that concerns no flow of the stack
	DropTxMalformed                   // an outgoing packet without an IP header
	DropNoPort                        // an outgoing packet for an address behind no device
	DropPanic                         // the code panicked while handling the frame, batch or connection
	DropGSO                           // an invalid UDP GSO frame: no segment size, or too many segments
	DropSource                        // an invalid source address
	DropFragment                      // fragments of a transport protocol that is not handled
	DropTxNotTCP                      // an outgoing packet of netstack's that is not TCP
	numDropReasons
)

var dropNames = [numDropReasons]string{"short", "other-mac", "ethertype", "ip-header", "ip-options", "checksum",
	"transport-header", "destination", "protocol", "arp", "ndp", "dhcp", "icmp", "tx-malformed", "no-port", "panic", "gso",
	"source", "fragment", "tx-not-tcp"}

func (r DropReason) String() string { return dropNames[r] }

type counters struct {
	drops        [numDropReasons]atomic.Uint64
	groupReports atomic.Uint64
	synLimited   atomic.Uint64
}

func (c *counters) drop(r DropReason) { c.drops[r].Add(1) }

// Stats is a snapshot of the counters of a Stack.
type Stats struct {
	Drops            map[string]uint64 // by DropReason's name; reasons that did not occur are omitted
	GroupReports     uint64            // multicast membership messages of the guest (IGMP, MLD), which concern multicast routers only
	TCPCurrent       uint64            // connections established at this moment
	TCPActive        uint64            // connections opened to the guest since the start
	TCPPassive       uint64            // connections the guest opened since the start
	TCPRetransmits   uint64            // segments retransmitted to the guest
	TCPInFlightDrops uint64            // SYNs ignored because maxInFlightSYN requests were in flight
	TCPBuffers       uint64            // bytes granted to the buffers of TCP connections at this moment
	TCPBufferRefused uint64            // times that a buffer could not grow
	SYNLimited       uint64            // SYNs ignored because too many before them came to nothing (synLimit)
}

// Stats returns the counters since New.
func (s *Stack) Stats() Stats {
	t := s.ns.Stats().TCP
	st := Stats{
		Drops:            map[string]uint64{},
		GroupReports:     s.stats.groupReports.Load(),
		TCPCurrent:       t.CurrentConnected.Value(),
		TCPActive:        t.ActiveConnectionOpenings.Value(),
		TCPPassive:       t.PassiveConnectionOpenings.Value(),
		TCPRetransmits:   t.Retransmits.Value(),
		TCPInFlightDrops: t.ForwardMaxInFlightDrop.Value(),
		TCPBuffers:       uint64(s.buffers.taken.Load()),
		TCPBufferRefused: s.buffers.refused.Load(),
		SYNLimited:       s.stats.synLimited.Load(),
	}
	for r := range numDropReasons {
		if n := s.stats.drops[r].Load(); n > 0 {
			st.Drops[r.String()] = n
		}
	}
	return st
}
