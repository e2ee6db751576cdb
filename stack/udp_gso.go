package stack

import "net/netip"

// A guest program that sends one datagram per system call produces one frame per datagram. The frames of one flow that are ready at
// the same time are combined into one GSO batch, as the kernel's UDP GRO does, so that the handler can send all of them to the
// host by one system call. No datagram waits for a later one: batches end with the frames that are ready.

const (
	// maxBatches is how many flows are combined at the same time; a further flow ends the oldest batch.
	maxBatches = 4
	// batchDatagrams is UDP_MAX_SEGMENTS before Linux 6.9 (include/linux/udp.h): the host's kernel refuses a longer batch,
	// which would have to be sent in parts.
	batchDatagrams = 64
	// maxPollRounds is how many times the receiver reads up to rxBatch frames before it delivers the batches, so that a flood
	// of one flow does not delay the others.
	maxPollRounds = 8
)

// gsoBatch is a sequence of datagrams of one flow, of equal size, TTL, TOS and DF.
type gsoBatch struct {
	d        Datagram // Payload lies in the frame it was received in or, when detached, in buf
	size     int      // bytes of each datagram
	count    int
	detached bool
	buf      []byte // allocated for the second datagram, then kept for later batches
}

// add appends d and returns true, if d fits the batch. A shorter datagram fits as the last one (see full).
func (t *gsoBatch) add(d *Datagram) bool {
	n := len(d.Payload)
	if n == 0 || n > t.size || d.GSOSize != 0 || d.TTL != t.d.TTL || d.TOS != t.d.TOS || d.DF != t.d.DF ||
		len(t.d.Payload)+n > maxIPv4UDP {
		return false
	}
	t.detach()
	t.d.Payload = append(t.d.Payload, d.Payload...)
	t.count++
	return true
}

// detach copies the payload out of the frame it was received in.
func (t *gsoBatch) detach() {
	if t.detached {
		return
	}
	if t.buf == nil {
		t.buf = make([]byte, 0, maxIPv4UDP)
	}
	t.d.Payload, t.detached = append(t.buf, t.d.Payload...), true
}

// full reports whether nothing can be added.
func (t *gsoBatch) full() bool {
	n := len(t.d.Payload)
	return t.count >= batchDatagrams || n%t.size != 0 || n+t.size > maxIPv4UDP
}

// gsoBatches are the open batches of a port. They belong to its receiver.
type gsoBatches struct {
	list [maxBatches]gsoBatch // the first n are open, the oldest first
	n    int
}

func (c *gsoBatches) find(src, dst netip.AddrPort) int {
	for i := range c.n {
		if d := &c.list[i].d; d.Dst == dst && d.Src == src {
			return i
		}
	}
	return -1
}

// collect adds d, which lies in the current frame, to the batch of its flow, or delivers it at once if it cannot be combined. The
// order of a flow's datagrams is kept. The handler gets every collected datagram by the next flush at the latest.
func (p *port) collect(d *Datagram) {
	c := &p.batches
	if i := c.find(d.Src, d.Dst); i >= 0 {
		if t := &c.list[i]; t.add(d) {
			if t.full() {
				p.deliverBatch(i)
			}
			return
		}
		p.deliverBatch(i)
	}
	if n := len(d.Payload); d.GSOSize != 0 || n == 0 || 2*n > maxIPv4UDP {
		p.s.handleUDP(p, d)
		return
	}
	if c.n == len(c.list) {
		p.deliverBatch(0)
	}
	t := &c.list[c.n]
	t.d, t.size, t.count, t.detached = *d, len(d.Payload), 1, false
	c.n++
}

// deliverBatch removes the i-th batch and passes it to the handler.
func (p *port) deliverBatch(i int) {
	c := &p.batches
	t := c.list[i]
	// Remove it first, so that after a panic of the handler the same datagrams are not delivered again.
	c.n--
	copy(c.list[i:c.n], c.list[i+1:c.n+1])
	last := &c.list[c.n]
	*last = gsoBatch{buf: t.buf}
	if t.count > 1 {
		t.d.GSOSize = uint16(t.size)
	}
	d := datagramPool.Get().(*Datagram)
	*d = t.d
	p.s.handleUDP(p, d)
	d.Payload = nil
	datagramPool.Put(d)
}

// detachBatches copies the payloads of all batches, so that the frames' buffers can be used again.
func (p *port) detachBatches() {
	for i := range p.batches.n {
		p.batches.list[i].detach()
	}
}

// flush delivers all batches.
func (p *port) flush() {
	for p.batches.n > 0 {
		p.deliverFirst()
	}
}

// deliverFirst delivers the oldest batch. A panic of the handler loses this batch only.
func (p *port) deliverFirst() {
	defer func() {
		if e := recover(); e != nil {
			p.s.panicked("panic while handling UDP datagrams; they are dropped", e)
		}
	}()
	p.deliverBatch(0)
}
