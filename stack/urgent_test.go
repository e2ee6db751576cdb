package stack

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// urgentRecorder writes ordinary data as it is and urgent bytes in brackets, and takes most bytes at most before it is full.
type urgentRecorder struct {
	strings.Builder
	most int
}

func (r *urgentRecorder) Write(b []byte) (int, error) {
	n := min(len(b), r.most)
	r.most -= n
	r.Builder.Write(b[:n])
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func (r *urgentRecorder) WriteUrgent(b byte) error {
	if r.most == 0 {
		return io.ErrShortWrite
	}
	r.most--
	r.Builder.WriteString("[" + string(rune(b)) + "]")
	return nil
}

// urgentFrame is a data segment whose urgent pointer is p.
func urgentFrame(f []byte, p uint16) []byte {
	t := f[len(f)-header.TCPMinimumSize-urgentSize:]
	t[13] |= byte(header.TCPFlagUrg)
	binary.BigEndian.PutUint16(t[18:], p)
	binary.BigEndian.PutUint16(t[tcpCsumOffset:], 0)
	binary.BigEndian.PutUint16(t[tcpCsumOffset:], ^sumWith(pseudoSumAddr(guest4, far4, protoTCP, len(t)), t))
	return f
}

const urgentSize = 6 // bytes in each segment of the test

// TestUrgentFromGuest: the byte before the urgent pointer is handed over apart, wherever it lies in what is read.
func TestUrgentFromGuest(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns := b.accept()
	src, dst := ap(guest4, 4000), ap(far4, 80)
	b.dev.InjectBytes(tcpFrame(src, dst, 0xfffffff8, 0, header.TCPFlagSyn, nil)) // the sequence numbers wrap
	ack := header.TCP(b.next().payload).SequenceNumber() + 1
	b.dev.InjectBytes(tcpFrame(src, dst, 0xfffffff9, ack, header.TCPFlagAck, nil))
	c := <-conns
	seq := uint32(0xfffffff9)
	for _, s := range []struct {
		text    string
		pointer uint16 // 0: none
	}{{"abcdef", 0}, {"ghijkl", 1}, {"mnopqr", 6}, {"stuvwx", 9}, {"yz0123", 3}, {"456789", 0}} {
		f := tcpFrame(src, dst, seq, ack, header.TCPFlagAck, []byte(s.text))
		if s.pointer > 0 {
			f = urgentFrame(f, s.pointer)
		}
		b.dev.InjectBytes(f)
		seq += urgentSize
	}
	b.settle()
	const want = "abcdef[g]hijklmnopq[r]stuvwxyz[0]123456789"
	got := &urgentRecorder{}
	waitFor(t, "all bytes", func() bool {
		got.most = 5
		_, _ = c.ReadTo(got)
		return got.Len() >= len(want)
	})
	if got.String() != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
