package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// SYNHandler receives the guest's SYNs before netstack does.
type SYNHandler interface {
	// HandleSYN is called on the receive path for every SYN of the guest, retransmissions included. It must not block, and must
	// Clone q if it keeps it. If it returns false, netstack handles the SYN.
	HandleSYN(q *SYN) (taken bool)
	// HandleReset is called on the receive path for every reset of the guest that belongs to no connection of netstack's; the
	// Flow is in the direction of the SYN. It must not block, and must not keep q.
	HandleReset(q *SYN)
}

// SetSYNHandler sets the SYNHandler. It must be called before the first AddPort.
func (s *Stack) SetSYNHandler(h SYNHandler) { s.synHandler = h }

// SYN is the guest's request for a connection, or the reset of one, for a datapath that does not use netstack.
type SYN struct {
	Flow
	TTL, TOS uint8
	Seq      uint32 // sequence number
	// Frame is the guest's segment with a complete checksum, after an Ethernet header whose addresses are zero. It is valid until
	// HandleSYN returns, except in a Clone.
	Frame []byte

	s *Stack
}

// Clone returns a copy that is valid after HandleSYN has returned.
func (q *SYN) Clone() *SYN {
	c := *q
	c.Frame = append([]byte(nil), q.Frame...)
	return &c
}

// ResetFrame returns, in the form of Frame, the segment with which the guest would reset the connection when the answer to its
// SYN finds no socket.
func (q *SYN) ResetFrame() []byte {
	v4 := q.Src.Addr().Is4()
	ipLen := header.IPv6MinimumSize
	if v4 {
		ipLen = header.IPv4MinimumSize
	}
	b := make([]byte, ethLen+ipLen+header.TCPMinimumSize)
	ip, t := b[ethLen:ethLen+ipLen], b[ethLen+ipLen:]
	copy(b, q.Frame[:ethLen])
	src, dst := q.Src.Addr().AsSlice(), q.Dst.Addr().AsSlice()
	if v4 {
		ip[0], ip[8], ip[9] = 4<<4|header.IPv4MinimumSize/4, q.TTL, protoTCP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(b)-ethLen))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Checksum(ip, 0))
	} else {
		ip[0], ip[6], ip[7] = 6<<4, protoTCP, q.TTL
		binary.BigEndian.PutUint16(ip[4:], header.TCPMinimumSize)
		copy(ip[8:], src)
		copy(ip[24:], dst)
	}
	binary.BigEndian.PutUint16(t[0:], q.Src.Port())
	binary.BigEndian.PutUint16(t[2:], q.Dst.Port())
	binary.BigEndian.PutUint32(t[4:], q.Seq+1)
	t[12], t[13] = header.TCPMinimumSize/4<<4, byte(header.TCPFlagRst)
	binary.BigEndian.PutUint16(t[tcpCsumOffset:], ^checksum.Checksum(t, pseudoSumAddr(q.Src.Addr(), q.Dst.Addr(), protoTCP, len(t))))
	return b
}

// Unreachable refuses the connection with an ICMP error. It returns an error if that cannot be sent.
func (q *SYN) Unreachable(e ICMPError) error { return q.s.writeTCPError(q.Flow, q.Seq, e) }

// Ignore sends no answer. It has nothing to undo: a SYN that is not answered is forgotten.
func (q *SYN) Ignore() {}

// Reset refuses the connection with a TCP reset. It returns an error if that cannot be sent.
func (q *SYN) Reset() error {
	p := q.s.portFor(q.Src.Addr())
	if p == nil {
		q.s.stats.drop(DropNoPort)
		return ErrNoPort
	}
	t := make([]byte, header.TCPMinimumSize)
	binary.BigEndian.PutUint16(t[0:], q.Dst.Port())
	binary.BigEndian.PutUint16(t[2:], q.Src.Port())
	binary.BigEndian.PutUint32(t[8:], q.Seq+1)
	t[12], t[13] = 5<<4, byte(header.TCPFlagRst|header.TCPFlagAck)
	binary.BigEndian.PutUint16(t[tcpCsumOffset:], ^checksum.Checksum(t, pseudoSumAddr(q.Dst.Addr(), q.Src.Addr(), protoTCP, len(t))))
	return q.s.writeFragments(p, q.Dst.Addr(), q.Src.Addr(), protoTCP, 0, 0, t, nil)
}

// isSYN reports whether a TCP segment asks for a connection.
func (k *packet) isSYN() bool {
	return header.TCPFlags(k.payload[13])&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) == header.TCPFlagSyn
}

// intercept passes the packet, whose checksum has been verified, to the SYNHandler if it is a SYN, or a reset of a connection
// that netstack does not have.
func (p *port) intercept(k *packet, r *rx) (taken bool) {
	s := p.s
	request := k.isSYN()
	if s.synHandler == nil || !request && (header.TCPFlags(k.payload[13])&header.TCPFlagRst == 0 || s.endpointOf(k) != nil) {
		return false
	}
	frame := r.view.AsSlice()
	if ethLen+len(k.ip) > len(frame) { // larger than any sensible SYN
		return false
	}
	q := &SYN{
		Flow: Flow{Endpoint: p.endpoint, Src: netip.AddrPortFrom(k.src, binary.BigEndian.Uint16(k.payload)), Dst: netip.AddrPortFrom(k.dst, binary.BigEndian.Uint16(k.payload[2:]))},
		TTL:  k.ttl, TOS: k.tos, Frame: frame[:ethLen+len(k.ip)], s: s, Seq: binary.BigEndian.Uint32(k.payload[4:]),
	}
	clear(q.Frame[:2*6])
	binary.BigEndian.PutUint16(k.payload[tcpCsumOffset:], 0)
	binary.BigEndian.PutUint16(k.payload[tcpCsumOffset:], ^checksum.Checksum(k.payload, pseudoSumAddr(k.src, k.dst, protoTCP, len(k.payload))))
	if !request {
		s.synHandler.HandleReset(q)
		return true
	}
	return s.synHandler.HandleSYN(q)
}
