package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// SYNHandler takes connection requests before netstack sees them.
type SYNHandler interface {
	// HandleSYN is called on the receive path for every first segment of a connection the guest opens. It must not
	// block, and must clone what it keeps. false leaves the request to netstack.
	HandleSYN(q *SYN) (taken bool)
}

// SetSYNHandler must be called before the first AddPort.
func (s *Stack) SetSYNHandler(h SYNHandler) { s.synHandler = h }

// SYN is a connection that the guest wants to open, on a road other than netstack's.
type SYN struct {
	Flow
	TTL, TOS uint8
	// Frame is the guest's own segment with its checksum complete, after an Ethernet header without addresses.
	Frame []byte

	s   *Stack
	seq uint32
}

// Clone copies what is only lent to HandleSYN.
func (q *SYN) Clone() *SYN {
	c := *q
	c.Frame = append([]byte(nil), q.Frame...)
	return &c
}

// Unreachable answers with an ICMP error.
func (q *SYN) Unreachable(e ICMPError) error { return q.s.writeTCPError(q.Flow, q.seq, e) }

// Ignore leaves the guest to its own timer. It has nothing to undo: a SYN that is not answered is forgotten.
func (q *SYN) Ignore() {}

// Reset refuses the connection.
func (q *SYN) Reset() error {
	p := q.s.portFor(q.Src.Addr())
	if p == nil {
		q.s.stats.drop(DropNoPort)
		return ErrNoPort
	}
	t := make([]byte, header.TCPMinimumSize)
	binary.BigEndian.PutUint16(t[0:], q.Dst.Port())
	binary.BigEndian.PutUint16(t[2:], q.Src.Port())
	binary.BigEndian.PutUint32(t[8:], q.seq+1)
	t[12], t[13] = 5<<4, byte(header.TCPFlagRst|header.TCPFlagAck)
	binary.BigEndian.PutUint16(t[tcpCsumOffset:], ^checksum.Checksum(t, pseudoSumAddr(q.Dst.Addr(), q.Src.Addr(), protoTCP, len(t))))
	return q.s.writeFragments(p, q.Dst.Addr(), q.Src.Addr(), protoTCP, 0, 0, t, nil)
}

// offerSYN shows the packet, whose checksum is right, to the handler if it is a first segment.
func (p *port) offerSYN(k *packet, r *rx) (taken bool) {
	s := p.s
	flags := header.TCPFlags(k.payload[13])
	if s.synHandler == nil || flags&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	frame := r.view.AsSlice()
	if ethLen+len(k.ip) > len(frame) { // no request is as large as that
		return false
	}
	q := &SYN{
		Flow: Flow{Endpoint: p.endpoint, Src: netip.AddrPortFrom(k.src, binary.BigEndian.Uint16(k.payload)), Dst: netip.AddrPortFrom(k.dst, binary.BigEndian.Uint16(k.payload[2:]))},
		TTL:  k.ttl, TOS: k.tos, Frame: frame[:ethLen+len(k.ip)], s: s, seq: binary.BigEndian.Uint32(k.payload[4:]),
	}
	clear(q.Frame[:2*6])
	binary.BigEndian.PutUint16(k.payload[tcpCsumOffset:], 0)
	binary.BigEndian.PutUint16(k.payload[tcpCsumOffset:], ^checksum.Checksum(k.payload, pseudoSumAddr(k.src, k.dst, protoTCP, len(k.payload))))
	return s.synHandler.HandleSYN(q)
}
