package stack

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Netstack has no urgent data (RFC 6093): what it receives is in the stream, and it sends none. This file notes the urgent
// pointers of the guest's segments before netstack gets them, so that ReadTo can hand over the urgent byte apart from the rest,
// and sets the urgent pointer of segments that netstack sends. The urgent byte is the one before the pointer, as in Linux.

// maxMarks bounds the urgent bytes of a connection that have not been read yet; a receiver of the kernel has one.
const maxMarks = 16

// UrgentWriter is a writer that can send one byte as urgent data.
type UrgentWriter interface {
	io.Writer
	// WriteUrgent writes the byte, or returns an error, io.ErrShortWrite if it cannot be written now.
	WriteUrgent(b byte) error
}

// connTable finds the Conn of a segment, for what is rare.
type connTable struct {
	mu sync.Mutex
	m  map[gstack.TransportEndpointID]*Conn // guarded by mu

	urgent atomic.Int32 // connections with an urgent pointer to be sent
}

func (t *connTable) add(id gstack.TransportEndpointID, c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.urg.table, c.urg.id = t, id
	t.m[id] = c
}

func (t *connTable) get(id gstack.TransportEndpointID) *Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id]
}

// urgentState is what a Conn knows of sequence numbers and urgent bytes.
type urgentState struct {
	table *connTable
	id    gstack.TransportEndpointID

	read    uint32 // bytes that were read, of the reading goroutine
	written uint32 // bytes that were written, of the writing goroutine
	active  bool   // an urgent byte was written, as byte number outAt; of the writing goroutine
	outAt   uint32

	marked atomic.Bool // there are marks

	mu      sync.Mutex
	irs     uint32   // initial sequence number of the guest; guarded by mu
	iss     uint32   // and of the stack; guarded by mu
	marks   []uint32 // sequence numbers of the guest's urgent bytes, ascending, not read yet; guarded by mu
	sending bool     // out is to be sent; guarded by mu
	out     uint32   // sequence number of the last urgent byte to the guest; guarded by mu
}

// forget removes c from the table.
func (c *Conn) forget() {
	t := c.urg.table
	if t == nil {
		return
	}
	t.mu.Lock()
	if t.m[c.urg.id] == c {
		delete(t.m, c.urg.id)
	}
	t.mu.Unlock()
	c.clearUrgent()
}

// noteSegment notes the initial sequence number and the urgent pointer of a segment of the guest's.
func (s *Stack) noteSegment(k *packet) {
	c := s.conns.get(k.endpointID())
	if c == nil {
		return
	}
	seq, flags := binary.BigEndian.Uint32(k.payload[4:]), header.TCPFlags(k.payload[13])
	u := &c.urg
	u.mu.Lock()
	defer u.mu.Unlock()
	if flags.Contains(header.TCPFlagSyn) {
		u.irs = seq
	}
	if !flags.Contains(header.TCPFlagUrg) {
		return
	}
	mark := seq
	if p := binary.BigEndian.Uint16(k.payload[18:]); p > 0 {
		mark += uint32(p) - 1
	}
	if n := len(u.marks); n >= maxMarks || n > 0 && int32(mark-u.marks[n-1]) <= 0 {
		return
	}
	u.marks = append(u.marks, mark)
	u.marked.Store(true)
}

// urgentSplitter writes what is read of a connection to w, and the urgent bytes in it apart.
type urgentSplitter struct {
	c *Conn
	w UrgentWriter
	n uint32 // bytes written
}

func (s *urgentSplitter) Write(b []byte) (done int, err error) {
	u := &s.c.urg
	for len(b) > 0 {
		before, marked := u.nextMark(u.read+s.n, len(b))
		if before > 0 {
			n, err := s.w.Write(b[:before])
			done, s.n = done+n, s.n+uint32(n)
			if err != nil || n < before {
				return done, err
			}
			b = b[before:]
		}
		if marked {
			if err := s.w.WriteUrgent(b[0]); err != nil {
				return done, err
			}
			done, s.n, b = done+1, s.n+1, b[1:]
		}
	}
	return done, nil
}

// nextMark returns how many of the next size bytes, from offset at of the stream on, come before an urgent one.
func (u *urgentState) nextMark(at uint32, size int) (before int, marked bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at += u.irs + 1
	for len(u.marks) > 0 && int32(u.marks[0]-at) < 0 {
		u.marks = u.marks[1:]
	}
	u.marked.Store(len(u.marks) > 0)
	if len(u.marks) > 0 && int(u.marks[0]-at) < size {
		return int(u.marks[0] - at), true
	}
	return size, false
}

// WriteUrgent sends one byte to the guest as urgent data. The error is that of WriteFrom.
func (c *Conn) WriteUrgent(b byte) error {
	u := &c.urg
	u.mu.Lock()
	if !u.sending {
		u.sending = true
		u.table.urgent.Add(1)
	}
	u.out = u.iss + 1 + u.written
	u.mu.Unlock()
	u.active, u.outAt = true, u.written
	_, err := c.WriteFrom(&oneByte{b}, 1)
	return err
}

// noteWritten counts bytes to the guest. An urgent byte so far behind that the send buffer cannot hold it was acknowledged.
func (c *Conn) noteWritten(n int) {
	u := &c.urg
	u.written += uint32(n)
	if u.active && u.written-u.outAt > tcpSendBuffer+1 {
		u.active = false
		c.clearUrgent()
	}
}

type oneByte struct{ b byte }

func (r *oneByte) Read(p []byte) (int, error) { return copy(p, []byte{r.b}), nil }

// clearUrgent ends the marking of segments to the guest.
func (c *Conn) clearUrgent() {
	c.urg.mu.Lock()
	defer c.urg.mu.Unlock()
	if c.urg.sending {
		c.urg.sending = false
		c.urg.table.urgent.Add(-1)
	}
}

// markUrgent notes the initial sequence number of the stack, and sets the urgent pointer of a segment with an urgent byte. t is
// the TCP header and size that of the payload. sums says whether the checksum is complete and has to be changed, too.
func (s *Stack) markUrgent(net, t []byte, size int, sums bool) {
	id := gstack.TransportEndpointID{LocalPort: binary.BigEndian.Uint16(t), RemotePort: binary.BigEndian.Uint16(t[2:])}
	id.LocalAddress, id.RemoteAddress = headerAddresses(net)
	c := s.conns.get(id)
	if c == nil {
		return
	}
	seq := binary.BigEndian.Uint32(t[4:])
	u := &c.urg
	u.mu.Lock()
	defer u.mu.Unlock()
	if header.TCPFlags(t[13]).Contains(header.TCPFlagSyn) {
		u.iss = seq
		return
	}
	at := u.out - seq
	if !u.sending || at >= uint32(size) || at >= 0xffff {
		return
	}
	old := checksum.Combine(^binary.BigEndian.Uint16(t[tcpCsumOffset:]), ^binary.BigEndian.Uint16(t[12:]))
	t[13] |= byte(header.TCPFlagUrg)
	binary.BigEndian.PutUint16(t[18:], uint16(at+1)) // it was 0
	if sums {
		now := checksum.Combine(checksum.Combine(old, binary.BigEndian.Uint16(t[12:])), uint16(at+1))
		binary.BigEndian.PutUint16(t[tcpCsumOffset:], ^now)
	}
}
