package stack

import "sync/atomic"

// DropReason says why the stack did not process a frame.
type DropReason uint8

// The reasons; the names returned by String are those shown in statistics.
const (
	DropShort       DropReason = iota // shorter than its headers
	DropMAC                           // addressed to somebody else
	DropEtherType                     // VLAN, or neither ARP, IPv4 nor IPv6, or a family that is off
	DropIPHeader                      // version, header length, total length or checksum of the IP header
	DropIPOptions                     // IPv6 extension headers that a gateway does not process
	DropChecksum                      // transport checksum
	DropTransport                     // TCP data offset, UDP length, ICMP header
	DropDestination                   // loopback, unspecified, multicast, broadcast or reserved destination of TCP
	DropProtocol                      // a transport protocol other than TCP, UDP, ICMP
	DropARP                           // malformed, or not for us
	DropNDP                           // malformed, or not for us
	DropDHCP                          // malformed, or not for us
	DropICMP                          // an ICMP message that concerns nothing here
	DropTxMalformed                   // packet of our own without an IP header
	DropNoPort                        // packet of our own for an address behind no device
	DropPanic                         // netstack panicked while handling the frame
	DropGSO                           // a train of datagrams that no kernel makes
	DropSource                        // a source address that no packet can come from
	DropFragment                      // fragments of a transport protocol that is not handled
	DropTxForeign                     // netstack wanted to say something that is not TCP
	numDropReasons
)

var dropNames = [numDropReasons]string{"short", "other-mac", "ethertype", "ip-header", "ip-options", "checksum",
	"transport-header", "destination", "protocol", "arp", "ndp", "dhcp", "icmp", "tx-malformed", "no-port", "panic", "gso",
	"source", "fragment", "tx-foreign"}

func (r DropReason) String() string { return dropNames[r] }

type counters struct {
	drops [numDropReasons]atomic.Uint64
}

func (c *counters) drop(r DropReason) { c.drops[r].Add(1) }

// Stats is a snapshot of the counters of a Stack.
type Stats struct {
	Drops            map[string]uint64 // by DropReason, zero counts left out
	TCPCurrent       uint64            // connections established at this moment
	TCPActive        uint64            // connections opened towards the guest since the start
	TCPPassive       uint64            // connections the guest opened since the start
	TCPRetransmits   uint64            // segments sent again to the guest
	TCPInFlightDrops uint64            // SYNs ignored because maxInFlightSYN were under way
}

// Stats returns the counters since New.
func (s *Stack) Stats() Stats {
	t := s.ns.Stats().TCP
	st := Stats{
		Drops:            map[string]uint64{},
		TCPCurrent:       t.CurrentConnected.Value(),
		TCPActive:        t.ActiveConnectionOpenings.Value(),
		TCPPassive:       t.PassiveConnectionOpenings.Value(),
		TCPRetransmits:   t.Retransmits.Value(),
		TCPInFlightDrops: t.ForwardMaxInFlightDrop.Value(),
	}
	for r := range numDropReasons {
		if n := s.stats.drops[r].Load(); n > 0 {
			st.Drops[r.String()] = n
		}
	}
	return st
}
