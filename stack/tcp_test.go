package stack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/internal/race"
	"rootlessnet/tap"
)

// accept has the handler accept every connection and passes it to the test.
func (b *bench) accept() <-chan *Conn {
	ch := make(chan *Conn, 16)
	b.h.tcp = func(q *TCPRequest) {
		c, err := q.Accept()
		if err != nil {
			b.Errorf("accept: %v", err)
			return
		}
		ch <- c
	}
	return ch
}

// writeAll moves data to the guest.
func writeAll(c *Conn, data []byte) error {
	for len(data) > 0 {
		n, err := c.WriteFrom(bytes.NewReader(data), len(data))
		data = data[n:]
		if errors.Is(err, ErrWouldBlock) {
			<-c.Writable()
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readAll reads what the guest sends until its FIN.
func readAll(c *Conn) ([]byte, error) {
	var got bytes.Buffer
	for {
		n, err := c.ReadTo(&got)
		c.ModerateReceive(n)
		switch {
		case errors.Is(err, ErrWouldBlock):
			<-c.Readable()
		case errors.Is(err, io.EOF):
			return got.Bytes(), nil
		case err != nil:
			return got.Bytes(), err
		}
	}
}

func TestTCPBothWaysWithHalfClose(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		conns := b.accept()
		p := b.peer()
		for _, a := range families {
			g, err := p.dial(ap(a.far, 80), patience)
			if err != nil {
				t.Fatal(err)
			}
			c := <-conns
			if c.Dst != ap(a.far, 80) || c.Src.Addr() != a.guest {
				t.Errorf("flow %v", c.Flow)
			}
			sent, back := pattern(100001), pattern(500003)
			go func() {
				_, _ = g.Write(sent)
				_ = g.CloseWrite()
			}()
			if got, err := readAll(c); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			go func() {
				if err := writeAll(c, back); err != nil {
					t.Errorf("write: %v", err)
				}
				_ = c.CloseWrite()
			}()
			if got, err := io.ReadAll(g); err != nil || !bytes.Equal(got, back) {
				t.Fatalf("%d bytes back, %v", len(got), err)
			}
			if c.Failed() {
				t.Error("Failed after FINs in both directions")
			}
			c.Close()
			g.Close()
		}
		if large := p.largest.Load(); info.TSO != (large > 32<<10) {
			t.Errorf("largest segmented frame: %d", large)
		}
	})
}

// TestLargeFramesOfTheGuest: frames of up to 64 KiB, as a kernel sends them with segmentation and checksum offload.
func TestLargeFramesOfTheGuest(t *testing.T) {
	b := newBench(t, offloads(), func(c *Config) { c.MTU = 65520 })
	conns := b.accept()
	for _, a := range families {
		src, dst := ap(a.guest, 4000), ap(a.far, 80)
		b.dev.InjectBytes(tcpFrame(src, dst, 100, 0, header.TCPFlagSyn, nil))
		syn := header.TCP(b.next().payload)
		if syn.Flags() != header.TCPFlagSyn|header.TCPFlagAck || syn.AckNumber() != 101 {
			t.Fatalf("SYN-ACK %x", syn)
		}
		ack := syn.SequenceNumber() + 1
		b.dev.InjectBytes(tcpFrame(src, dst, 101, ack, header.TCPFlagAck, nil))
		c := <-conns
		var sent []byte
		var got bytes.Buffer
		// Sizes around that of a view, up to the largest possible.
		limit := 65535 - 40
		if a.guest.Is6() {
			limit = 65535 - 20
		}
		for _, n := range []int{copyBelow - 54, copyBelow - 53, rxViewSize - 54, rxViewSize - 74, limit - 1, limit, 1} {
			if n > limit {
				continue
			}
			f := tcpFrame(src, dst, 101+uint32(len(sent)), ack, header.TCPFlagAck|header.TCPFlagPsh, pattern(n))
			at := len(f) - n - 20
			f[at+16] ^= 0x55 // as with a partial checksum
			b.dev.Inject(tap.Frame{Header: tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOTCPv4, GSOSize: 1460, HdrLen: uint16(len(f) - n), CsumStart: uint16(at), CsumOffset: 16}, Bufs: [][]byte{f}})
			sent = append(sent, pattern(n)...)
			for got.Len() < len(sent) { // the window is as large as one frame
				if _, err := c.ReadTo(&got); errors.Is(err, ErrWouldBlock) {
					select {
					case <-c.Readable():
					case <-time.After(patience):
						t.Fatalf("%d of %d bytes; drops %v", got.Len(), len(sent), b.s.Stats().Drops)
					}
				}
			}
		}
		if !bytes.Equal(got.Bytes(), sent) {
			t.Error("bytes differ")
		}
		c.Abort()
		b.dev.Written()
	}
	if n := b.drops(DropPanic); n != 0 {
		t.Errorf("%d panics", n)
	}
}

// A reset that a write has reported is not an end of file for the reader.
func TestResetIsReportedInBothDirections(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	conns := b.accept()
	for _, a := range families {
		src, dst := ap(a.guest, 4000), ap(a.far, 80)
		b.dev.InjectBytes(tcpFrame(src, dst, 100, 0, header.TCPFlagSyn, nil))
		ack := header.TCP(b.next().payload).SequenceNumber() + 1
		b.dev.InjectBytes(tcpFrame(src, dst, 101, ack, header.TCPFlagAck, nil))
		c := <-conns
		b.dev.InjectBytes(tcpFrame(src, dst, 101, ack, header.TCPFlagRst|header.TCPFlagAck, nil))
		waitFor(t, "the reset", c.Failed)
		if _, err := c.WriteFrom(bytes.NewReader([]byte("x")), 1); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
		if _, err := c.ReadTo(io.Discard); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		c.Close()
		b.dev.Written()
	}
}

// tcpFrame is a segment without options and with a valid checksum.
func tcpFrame(src, dst netip.AddrPort, seq, ack uint32, flags header.TCPFlags, data []byte) []byte {
	h := make([]byte, 20, 20+len(data))
	header.TCP(h).Encode(&header.TCPFields{SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: seq, AckNum: ack, DataOffset: 20, Flags: flags, WindowSize: 65535})
	h = append(h, data...)
	binary.BigEndian.PutUint16(h[16:], ^checksum.Checksum(h, pseudoSumAddr(src.Addr(), dst.Addr(), protoTCP, len(h))))
	return ipFrame(src.Addr(), dst.Addr(), protoTCP, h)
}

func TestTCPRequestAnswers(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		for _, a := range families {
			src, dst := ap(a.guest, 4000), ap(a.far, 80)
			syn := tcpFrame(src, dst, 0xdeadbeef, 0, header.TCPFlagSyn, nil)

			b.h.tcp = func(q *TCPRequest) {
				if q.Flow != (Flow{Src: src, Dst: dst}) || q.TTL != 61 || q.TOS != 0x48 {
					t.Errorf("request %+v", q)
				}
				q.Reset()
				q.Reset() // the second call has no effect
			}
			b.dev.InjectBytes(syn)
			if h := header.TCP(b.next().payload); h.Flags() != header.TCPFlagRst|header.TCPFlagAck || h.AckNumber() != 0xdeadbef0 {
				t.Errorf("reset %x", h)
			}

			e := ICMPError{Type: icmp4Unreachable, Code: 1}
			if a.guest.Is6() {
				e = ICMPError{Type: icmp6Unreachable, Code: 3}
			}
			b.h.tcp = func(q *TCPRequest) {
				if err := q.Unreachable(e); err != nil {
					t.Error(err)
				}
			}
			b.dev.InjectBytes(syn)
			size := 576
			if a.guest.Is6() {
				size = 1280
			}
			b.checkError(a, a.gw, e, protoTCP, size, func(s []byte) bool {
				return binary.BigEndian.Uint16(s) == 4000 && binary.BigEndian.Uint16(s[2:]) == 80 && binary.BigEndian.Uint32(s[4:]) == 0xdeadbeef
			})

			// Ignored: no answer. A SYN retransmitted afterwards is a new request, one retransmitted meanwhile is not.
			asked, release := make(chan bool, 4), make(chan bool)
			b.h.tcp = func(q *TCPRequest) {
				asked <- true
				<-release
				q.Ignore()
			}
			b.dev.InjectBytes(syn)
			<-asked
			b.dev.InjectBytes(syn)
			b.settle()
			release <- true
			b.quiet("an ignored SYN")
			waitFor(t, "the slot", func() bool { return b.inFlight() == 0 })
			b.dev.InjectBytes(syn)
			<-asked
			release <- true
			waitFor(t, "the slot", func() bool { return b.inFlight() == 0 })
			if len(asked) != 0 {
				t.Error("a retransmitted SYN became a second request")
			}

			b.h.tcp = func(*TCPRequest) { panic("a bug in a handler") }
			n := b.drops(DropPanic)
			b.dev.InjectBytes(syn)
			waitFor(t, "the panic", func() bool { return b.drops(DropPanic) == n+1 && b.inFlight() == 0 })
		}
	})
}

func (b *bench) inFlight() int {
	b.s.syns.mu.Lock()
	defer b.s.syns.mu.Unlock()
	return len(b.s.syns.m)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within the time limit", what)
		}
	}
}

func TestInvalidSYNsAreNotAnswered(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	b.h.tcp = func(q *TCPRequest) { t.Errorf("a request for %v", q.Dst); q.Ignore() }
	for _, dst := range []string{"127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255"} {
		b.dev.InjectBytes(tcpFrame(ap(guest4, 4000), ap(netip.MustParseAddr(dst), 80), 1, 0, header.TCPFlagSyn, nil))
		b.dev.InjectBytes(tcpFrame(ap(guest4, 4000), ap(netip.MustParseAddr(dst), 80), 1, 0, header.TCPFlagAck, nil))
	}
	for _, dst := range []string{"::1", "::", "ff02::1", "::ffff:127.0.0.1"} {
		b.dev.InjectBytes(tcpFrame(ap(guest6, 4000), ap(netip.MustParseAddr(dst), 80), 1, 0, header.TCPFlagSyn, nil))
	}
	b.dev.InjectBytes(tcpFrame(ap(netip.MustParseAddr("127.0.0.1"), 4000), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil))
	many := tcpFrame(ap(guest4, 4000), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil)
	copy(many, broadcastMAC[:])
	bad := tcpFrame(ap(guest4, 4000), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil)
	bad[len(bad)-1] ^= 1
	b.dev.InjectBytes(many, bad)
	for off := range 16 { // every data offset but 5
		if off != 5 {
			f := tcpFrame(ap(guest4, 4000), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil)
			f[ethLen+20+12] = byte(off << 4)
			b.dev.InjectBytes(f)
		}
	}
	b.quiet("an invalid SYN")
	if b.drops(DropDestination) != 17 || b.drops(DropSource) != 1 || b.drops(DropChecksum) != 1 || b.drops(DropTransport) != 15 {
		t.Errorf("dropped: %v", b.s.Stats().Drops)
	}
}

// Requests in flight are released: more requests than maxInFlightSYN can be made.
func TestRequestsInFlightAreReleased(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	b.h.tcp = func(q *TCPRequest) { q.Ignore() }
	const some = 500
	attempts := maxInFlightSYN + some
	if race.Enabled {
		attempts = 1000 // races show early, and more would take long
	}
	for i := range attempts {
		f := tcpFrame(ap(guest4, uint16(1024+i)), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil)
		b.dev.InjectBytes(f, f)
		if i%some == some-1 {
			b.settle()
			for range 2 * some { // the limit of SYNs that come to nothing is not the subject
				b.s.synLimit.giveBack(ap(far4, 80))
			}
		}
	}
	b.settle()
	waitFor(t, "an empty table", func() bool { return b.inFlight() == 0 })
	b.h.tcp = func(q *TCPRequest) { q.Reset() }
	b.dev.InjectBytes(tcpFrame(ap(guest4, 99), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil))
	if k := b.next(); k.proto != protoTCP {
		t.Errorf("%+v", k)
	}
}

func TestResetReachesReaderAndWriter(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns := b.accept()
	p := b.peer()
	g, err := p.dial(ap(far4, 80), patience)
	if err != nil {
		t.Fatal(err)
	}
	c := <-conns
	failed := make(chan bool, 16)
	c.OnFailure(func() { failed <- true })
	if err := writeAll(c, []byte("unread")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the bytes", func() bool { return b.s.ns.Stats().TCP.SegmentsSent.Value() >= 2 })
	time.Sleep(silence)
	g.Close() // with unread data, so it sends a reset
	select {
	case <-failed:
	case <-time.After(patience):
		t.Fatal("OnFailure was not called")
	}
	if _, err := c.ReadTo(io.Discard); !errors.Is(err, syscall.ECONNRESET) || !c.Failed() {
		t.Errorf("read after a reset: %v", err)
	}
	if _, err := c.WriteFrom(bytes.NewReader([]byte("x")), 1); err == nil {
		t.Error("a write succeeded after a reset")
	}
	c.Detach()
	c.Close()
	waitFor(t, "the end", func() bool { return b.s.Stats().TCPCurrent == 0 })
}

// shortWriter accepts the given number of bytes.
type shortWriter struct{ left int }

func (w *shortWriter) Write(b []byte) (int, error) {
	n := min(len(b), w.left)
	w.left -= n
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func TestReadToStopsWithTheWriter(t *testing.T) {
	b := newBench(t, offloads(), nil)
	conns := b.accept()
	g, err := b.peer().dial(ap(far4, 80), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c := <-conns
	if _, err := c.ReadTo(io.Discard); !errors.Is(err, ErrWouldBlock) {
		t.Errorf("nothing to read: %v", err)
	}
	if _, err := g.Write(pattern(1000)); err != nil {
		t.Fatal(err)
	}
	<-c.Readable()
	if n, err := c.ReadTo(&shortWriter{}); n != 0 || !errors.Is(err, ErrWouldBlock) {
		t.Errorf("a full writer: %d %v", n, err)
	}
	if n, err := c.ReadTo(&shortWriter{300}); n != 300 || err != nil {
		t.Errorf("a writer that accepts 300 bytes: %d %v", n, err)
	}
	var rest bytes.Buffer
	if n, err := c.ReadTo(&rest); n != 700 || err != nil || !bytes.Equal(rest.Bytes(), pattern(1000)[300:]) {
		t.Errorf("the rest: %d %v", n, err)
	}
	c.Abort()
}

// Close with connections in all states: it returns soon, resets the guest's connections, and leaves no goroutine (newBench checks).
func TestCloseWithConnectionsInAllStates(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	accepted := make(chan error, 64)
	first := make(chan *Conn, 1)
	b.h.tcp = func(q *TCPRequest) {
		c, err := q.Accept()
		if err == nil && q.Src.Port() == 1 {
			first <- c
		}
		accepted <- err
	}
	b.dev.InjectBytes(tcpFrame(ap(guest4, 1), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil))
	sa := header.TCP(b.next().payload)
	b.dev.InjectBytes(tcpFrame(ap(guest4, 1), ap(far4, 80), 2, sa.SequenceNumber()+1, header.TCPFlagAck, nil))
	(<-first).Close() // a FIN that the guest does not answer
	b.next()
	for i := range 20 {
		b.dev.InjectBytes(tcpFrame(ap(guest4, uint16(100+i)), ap(far4, 80), 1, 0, header.TCPFlagSyn, nil))
		b.next() // SYN-ACK: half open
	}
	start := time.Now()
	b.s.Close()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
	for range 21 {
		select {
		case <-accepted:
		case <-time.After(patience):
			t.Fatal("a call of Accept has not returned")
		}
	}
}
