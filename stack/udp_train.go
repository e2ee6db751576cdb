package stack

import (
	"fmt"
	"net/netip"
	"runtime/debug"
)

// What a program sends one datagram a call arrives one frame each; the frames of one flow that are ready at once are
// handed over as a train, so that the host is asked once for all of them. Nothing waits for a datagram that is not
// there yet: trains end with the frames that were ready.

const (
	// openTrains flows can be collected at once; the oldest leaves for another.
	openTrains = 4
	// trainDatagrams is UDP_MAX_SEGMENTS before Linux 6.9 (include/linux/udp.h): a longer train is sent in parts.
	trainDatagrams = 64
	// trainRounds times rxBatch frames are read at most before what was collected leaves: no flow waits for the end of
	// another's flood.
	trainRounds = 8
)

// train is what was collected of one flow: datagrams of equal size, TTL, TOS and DF, in order.
type train struct {
	d     Datagram // Payload lies in the frame it came with, or, when owned, in buf
	size  int      // of each datagram
	count int
	owned bool
	buf   []byte // allocated for the second datagram, and kept
}

// add appends d when it belongs to the train, and says whether it did. A shorter one is the last (see full).
func (t *train) add(d *Datagram) bool {
	n := len(d.Payload)
	if n == 0 || n > t.size || d.GSOSize != 0 || d.TTL != t.d.TTL || d.TOS != t.d.TOS || d.DF != t.d.DF ||
		len(t.d.Payload)+n > maxIPv4UDP {
		return false
	}
	t.own()
	t.d.Payload = append(t.d.Payload, d.Payload...)
	t.count++
	return true
}

// own moves the payload out of the frame it came with.
func (t *train) own() {
	if t.owned {
		return
	}
	if t.buf == nil {
		t.buf = make([]byte, 0, maxIPv4UDP)
	}
	t.d.Payload, t.owned = append(t.buf, t.d.Payload...), true
}

// full says whether nothing can be added.
func (t *train) full() bool {
	n := len(t.d.Payload)
	return t.count >= trainDatagrams || n%t.size != 0 || n+t.size > maxIPv4UDP
}

// trains belongs to the receiver of a port.
type trains struct {
	list [openTrains]train
	n    int // of them open, the oldest first
}

func (c *trains) find(src, dst netip.AddrPort) int {
	for i := range c.n {
		if d := &c.list[i].d; d.Dst == dst && d.Src == src {
			return i
		}
	}
	return -1
}

// collect takes d of the frame in hand, which the handler gets now, or at the latest by flush, in the order of its flow.
func (p *port) collect(d *Datagram) {
	c := &p.trains
	if i := c.find(d.Src, d.Dst); i >= 0 {
		if t := &c.list[i]; t.add(d) {
			if t.full() {
				p.leave(i)
			}
			return
		}
		p.leave(i)
	}
	if n := len(d.Payload); d.GSOSize != 0 || n == 0 || 2*n > maxIPv4UDP {
		p.s.handleUDP(p, d)
		return
	}
	if c.n == len(c.list) {
		p.leave(0)
	}
	t := &c.list[c.n]
	t.d, t.size, t.count, t.owned = *d, len(d.Payload), 1, false
	c.n++
}

// leave hands the i-th train to the handler.
func (p *port) leave(i int) {
	c := &p.trains
	t := c.list[i]
	// Out of the list first: a panic of the handler must not meet the same datagrams again.
	c.n--
	copy(c.list[i:c.n], c.list[i+1:c.n+1])
	last := &c.list[c.n]
	*last = train{buf: t.buf}
	if t.count > 1 {
		t.d.GSOSize = uint16(t.size)
	}
	d := datagramPool.Get().(*Datagram)
	*d = t.d
	p.s.handleUDP(p, d)
	d.Payload = nil
	datagramPool.Put(d)
}

// keep makes what was collected outlast the frames it came with.
func (p *port) keep() {
	for i := range p.trains.n {
		p.trains.list[i].own()
	}
}

// flush hands everything that was collected to the handler.
func (p *port) flush() {
	for p.trains.n > 0 {
		p.leaveFirst()
	}
}

// leaveFirst is leave for the oldest; like a frame's, a panic costs what it happened in.
func (p *port) leaveFirst() {
	defer func() {
		if e := recover(); e != nil {
			p.s.stats.drop(DropPanic)
			p.s.log.Error("panic while handling datagrams", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
		}
	}()
	p.leave(0)
}
