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

// query is a parsed message of a client.
type query struct {
	raw      []byte // the whole message
	question []byte // part of raw: name, type, class; empty if there is not exactly one question
	qtype    uint16
	qclass   uint16

	edns    bool
	size    int // the client's UDP payload size in bytes; minUDPSize without EDNS
	version uint8
	do      bool
}

func (q *query) id() uint16    { return binary.BigEndian.Uint16(q.raw) }
func (q *query) flags() uint16 { return binary.BigEndian.Uint16(q.raw[2:]) }

// name returns the name in the question, in wire format.
func (q *query) name() []byte { return q.question[:len(q.question)-4] }

// parseQuery parses raw, to which q keeps a reference. ok is false if the message must not be answered: it is shorter than a
// header, or is an answer itself (two resolvers could otherwise answer each other forever). Otherwise rcode is success or the
// error to answer with.
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

// readRecords parses the records after the question for the OPT record (RFC 6891, 6.1.1). It returns false if they are malformed.
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

// questionEnd returns the offset after the first question, or -1. There is no name before the question that a compression
// pointer could refer to, so a pointer is an error.
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

// skipName returns the offset after the name at off, or -1. A compression pointer ends the name and is not followed.
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

// answers reports whether msg is an answer to q, which was sent with the given ID. The comparison of names ignores case, as
// some servers change it. An error may lack the question.
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

// foldName returns a name in wire format with ASCII letters in lower case (RFC 4343). Length bytes are at most 63, less than 'A'.
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

// withID returns a copy of msg with the given ID.
func withID(msg []byte, id uint16) []byte {
	out := append([]byte(nil), msg...)
	binary.BigEndian.PutUint16(out, id)
	return out
}

// header returns the beginning of an answer to q: the header, and the question if there was one.
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

// addOPT appends an OPT record to an answer if the query had one (RFC 6891, 6.1.1).
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

// errorAnswer returns an answer to q that has only rcode.
func (q *query) errorAnswer(rcode int) []byte {
	return q.addOPT(q.header(0, rcode), rcode)
}

// fit returns msg or, if it has more than limit bytes, an empty answer with the TC bit: a client cannot use a part of a record set
// (RFC 2181, 9).
func (q *query) fit(msg []byte, limit int) (out []byte, truncated bool) {
	if len(msg) <= limit {
		return msg, false
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	return q.addOPT(q.header(flags|bitTC, 0), 0), true
}
