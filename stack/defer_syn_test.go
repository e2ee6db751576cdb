package stack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestPortReuseAfterReset: a client resets its connection and reuses the port at once, and both segments arrive together. The
// SYN must not be handled as a segment of the connection that is closing.
func TestPortReuseAfterReset(t *testing.T) {
	for _, a := range families {
		b := newBench(t, noOffload(), nil)
		conns := b.accept()
		src, dst := ap(a.guest, 7777), ap(a.far, 80)
		seq := uint32(1000)
		b.dev.InjectBytes(tcpFrame(src, dst, seq, 0, header.TCPFlagSyn, nil))
		const times = 100
		for i := range times {
			h := header.TCP(b.next().payload)
			if h.Flags() != header.TCPFlagSyn|header.TCPFlagAck || h.AckNumber() != seq+1 {
				t.Fatalf("connection %d is answered with %v, ack %d, want %d", i, h.Flags(), h.AckNumber(), seq+1)
			}
			b.dev.InjectBytes(tcpFrame(src, dst, seq+1, h.SequenceNumber()+1, header.TCPFlagAck, nil))
			c := <-conns
			frames := [][]byte{tcpFrame(src, dst, seq+1, 0, header.TCPFlagRst, nil)}
			if seq += 100_000; i < times-1 {
				frames = append(frames, tcpFrame(src, dst, seq, 0, header.TCPFlagSyn, nil))
			}
			b.dev.InjectBytes(frames...)
			if _, err := readAll(c); err == nil {
				t.Error("the reset did not arrive")
			}
			c.Close()
		}
	}
}

// TestSYNWithinConnection: a SYN within an established connection is deferred for a while, and then handled by netstack.
func TestSYNWithinConnection(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	conns := b.accept()
	src, dst := ap(guest4, 7777), ap(far4, 80)
	b.dev.InjectBytes(tcpFrame(src, dst, 1000, 0, header.TCPFlagSyn, nil))
	h := header.TCP(b.next().payload)
	mine := h.SequenceNumber() + 1
	b.dev.InjectBytes(tcpFrame(src, dst, 1001, mine, header.TCPFlagAck, nil))
	c := <-conns
	b.dev.InjectBytes(tcpFrame(src, dst, 900_000, 0, header.TCPFlagSyn, nil))
	if h = header.TCP(b.next().payload); h.Flags() != header.TCPFlagAck || h.AckNumber() != 1001 || h.SequenceNumber() != mine {
		t.Errorf("answered with %v, want the challenge of RFC 5961 4.2", h)
	}
	waitFor(t, "the deferred SYN", func() bool { return b.s.deferred.Load() == 0 })
	c.Abort()
}
