package dns

import (
	"encoding/binary"

	mdns "github.com/miekg/dns"
)

// Bits of the second 16-bit word of a header (RFC 1035, 4.1.1; RFC 4035, 3.2).
const (
	bitQR      = 0x8000
	maskOpcode = 0x7800
	bitAA      = 0x0400
	bitTC      = 0x0200
	bitRD      = 0x0100
	bitRA      = 0x0080
	bitCD      = 0x0010
	maskRcode  = 0x000f
)

// query is what we have to know of a message from a client.
type query struct {
	raw      []byte // the whole message
	question []byte // in raw: name, type, class; empty when there is not exactly one
	qtype    uint16
	qclass   uint16

	edns    bool
	size    int // the client's UDP payload size; minUDPSize without EDNS
	version uint8
	do      bool
}

func (q *query) id() uint16    { return binary.BigEndian.Uint16(q.raw) }
func (q *query) flags() uint16 { return binary.BigEndian.Uint16(q.raw[2:]) }

// name is the wire form of the name asked for.
func (q *query) name() []byte { return q.question[:len(q.question)-4] }

// parseQuery reads raw, which q keeps. ok is false when nothing can be answered: too short for a header, or itself an
// answer (answering those would let two resolvers talk for ever). Otherwise rcode says whether to go on (success) or
// with what error to answer.
func parseQuery(raw []byte) (q *query, rcode int, ok bool) {
	if len(raw) < minMessage {
		return nil, 0, false
	}
	q = &query{raw: raw, size: minUDPSize}
	if q.flags()&bitQR != 0 {
		return nil, 0, false
	}
	if q.flags()&maskOpcode != 0 {
		return q, mdns.RcodeNotImplemented, true
	}
	if binary.BigEndian.Uint16(raw[4:]) != 1 {
		return q, mdns.RcodeFormatError, true
	}
	end := questionEnd(raw)
	if end < 0 {
		return q, mdns.RcodeFormatError, true
	}
	q.question = raw[minMessage:end]
	q.qtype = binary.BigEndian.Uint16(raw[end-4:])
	q.qclass = binary.BigEndian.Uint16(raw[end-2:])
	if !q.readRecords(end) {
		return q, mdns.RcodeFormatError, true
	}
	if q.qtype == mdns.TypeAXFR || q.qtype == mdns.TypeIXFR {
		return q, mdns.RcodeRefused, true
	}
	return q, mdns.RcodeSuccess, true
}

// readRecords walks the records after the question, looking for the OPT record (RFC 6891, 6.1.1).
func (q *query) readRecords(off int) bool {
	n := 0
	for i := 6; i < minMessage; i += 2 {
		n += int(binary.BigEndian.Uint16(q.raw[i:]))
	}
	for ; n > 0; n-- {
		root := off < len(q.raw) && q.raw[off] == 0
		if off = skipName(q.raw, off); off < 0 || len(q.raw)-off < 10 {
			return false
		}
		rr := q.raw[off:]
		if off += 10 + int(binary.BigEndian.Uint16(rr[8:])); off > len(q.raw) {
			return false
		}
		if binary.BigEndian.Uint16(rr) != mdns.TypeOPT {
			continue
		}
		if q.edns || !root {
			return false
		}
		q.edns = true
		q.size = max(minUDPSize, int(binary.BigEndian.Uint16(rr[2:])))
		q.version = rr[5]
		q.do = rr[6]&0x80 != 0
	}
	return true
}

// questionEnd returns the offset after the first question, or -1. A question's name has nothing before it that a
// compression pointer could mean, so one is an error.
func questionEnd(msg []byte) int {
	off := minMessage
	for {
		if off >= len(msg) || msg[off] > 63 {
			return -1
		}
		l := int(msg[off])
		off += 1 + l
		if off-minMessage > 255 { // RFC 1035, 2.3.4
			return -1
		}
		if l == 0 {
			break
		}
	}
	if off += 4; off > len(msg) {
		return -1
	}
	return off
}

// skipName returns the offset after the name at off, or -1. A pointer ends a name and is not followed.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		switch l := msg[off]; {
		case l == 0:
			return off + 1
		case l >= 0xc0:
			if off+2 > len(msg) {
				return -1
			}
			return off + 2
		case l > 63:
			return -1
		default:
			off += 1 + int(l)
		}
	}
	return -1
}

// answers reports whether msg is an answer to q as it was sent with id. The name is compared without case, since some
// servers fold it. An error may come without the question.
func answers(msg []byte, id uint16, q *query) bool {
	if len(msg) < minMessage || binary.BigEndian.Uint16(msg) != id {
		return false
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&bitQR == 0 || flags&maskOpcode != 0 {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		return flags&maskRcode != 0
	case 1:
		end := questionEnd(msg)
		if end < 0 {
			return false
		}
		got := msg[minMessage:end]
		n := len(got) - 4
		return len(got) == len(q.question) && string(got[n:]) == string(q.question[n:]) &&
			string(foldName(got[:n])) == string(foldName(q.name()))
	}
	return false
}

// foldName returns a wire-form name with ASCII letters in lower case (RFC 4343). Length bytes are at most 63, below 'A'.
func foldName(name []byte) []byte {
	out := make([]byte, len(name))
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

func rcodeOf(msg []byte) int      { return int(msg[3] & maskRcode) }
func isTruncated(msg []byte) bool { return msg[2]&(bitTC>>8) != 0 }

// withID returns a copy of msg with another ID.
func withID(msg []byte, id uint16) []byte {
	out := append([]byte(nil), msg...)
	binary.BigEndian.PutUint16(out, id)
	return out
}

// header starts an answer to q made here: the question is repeated if there was one.
func (q *query) header(flags uint16, rcode int) []byte {
	out := make([]byte, minMessage, minMessage+len(q.question)+64)
	binary.BigEndian.PutUint16(out, q.id())
	flags |= bitQR | bitRA | q.flags()&(maskOpcode|bitRD|bitCD) | uint16(rcode)&maskRcode
	binary.BigEndian.PutUint16(out[2:], flags)
	if len(q.question) > 0 {
		binary.BigEndian.PutUint16(out[4:], 1)
		out = append(out, q.question...)
	}
	return out
}

// addOPT ends an answer made here: a client that speaks EDNS is answered in EDNS (RFC 6891, 6.1.1).
func (q *query) addOPT(msg []byte, rcode int) []byte {
	if !q.edns {
		return msg
	}
	addCount(msg, 10, 1)
	var do byte
	if q.do {
		do = 0x80
	}
	msg = append(msg, 0)
	msg = binary.BigEndian.AppendUint16(msg, mdns.TypeOPT)
	msg = binary.BigEndian.AppendUint16(msg, ourUDPSize)
	return append(msg, byte(rcode>>4), 0, do, 0, 0, 0)
}

// addCount adds n to the record count at offset at of the header.
func addCount(msg []byte, at, n int) {
	binary.BigEndian.PutUint16(msg[at:], binary.BigEndian.Uint16(msg[at:])+uint16(n))
}

// errorAnswer answers q with rcode and nothing else.
func (q *query) errorAnswer(rcode int) []byte {
	return q.addOPT(q.header(0, rcode), rcode)
}

// fit returns msg, or when it has more than limit bytes an empty answer that says so: half of a record set is worth
// nothing to a client (RFC 2181, 9).
func (q *query) fit(msg []byte, limit int) (out []byte, truncated bool) {
	if len(msg) <= limit {
		return msg, false
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	return q.addOPT(q.header(flags|bitTC, 0), 0), true
}
