package udp

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/stack"
)

// Datagrams that wait in the host's socket are sent to the guest in GSO batches, and every datagram keeps its boundaries.
func TestUDPBatchesToTheGuest(t *testing.T) {
	one, two := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	w.send(forwardlab.Guest4, one.At, "x")
	_, from := one.Receive(t)
	w.send(forwardlab.Guest4, two.At, "x")
	two.Receive(t)
	batches := 0
	for round := range 4 {
		want, got := map[netip.AddrPort][]string{}, map[netip.AddrPort][]string{}
		total := 0
		w.mu.Lock() // the reader waits for mu, so that what is sent now is read together
		for i, size := range []int{100, 100, 100, 40, 100, 0, 0, 7, 7, 9, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 1, 60, 60, 60, 60} {
			h := one
			if round > 1 && i%3 == 0 {
				h = two
			}
			s := strings.Repeat(string(rune('a'+i)), size)
			want[h.At] = append(want[h.At], s)
			h.Send(t, from, s)
			total++
		}
		w.mu.Unlock()
		for n := 0; n < total; {
			d := forwardlab.Receive(t, w.g.UDP, "datagram")
			if d.TTL != 63 {
				t.Fatalf("TTL %d", d.TTL)
			}
			p := string(d.Payload)
			if d.GSOSize == 0 {
				got[d.Src] = append(got[d.Src], p)
				n++
				continue
			}
			if batches++; len(p) > maxBatchBytes || len(p) <= int(d.GSOSize) {
				t.Errorf("a batch of %d bytes, %d each", len(p), d.GSOSize)
			}
			for len(p) > 0 {
				k := min(len(p), int(d.GSOSize))
				got[d.Src] = append(got[d.Src], p[:k])
				p = p[k:]
				n++
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("round %d: got %.300v, want %.300v", round, got, want)
		}
	}
	if batches == 0 {
		t.Error("no two datagrams came in one batch")
	}
	// Counted after it was written.
	forwardlab.Eventually(t, "all are counted", func() bool { return w.Stats().InPackets >= 4*23 })
	if st := w.Stats(); st.InPackets != 4*23 || len(st.Drops) != 0 {
		t.Errorf("%+v", st)
	}
}

// Datagrams with different TTL or TOS are not put into one batch.
func TestUDPBatchesKeepTOS(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	w.send(forwardlab.Guest4, h.At, "x")
	_, from := h.Receive(t)
	rc, err := h.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	var want []uint8
	for i := range 12 {
		tos := uint8(i / 3 * 4)
		want = append(want, tos)
		_ = rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, int(tos)) })
		if err != nil {
			t.Fatal(err)
		}
		h.Send(t, from, "12345")
	}
	w.mu.Unlock()
	var got []uint8
	for len(got) < len(want) {
		d := forwardlab.Receive(t, w.g.UDP, "datagram")
		for range len(d.Payload) / 5 {
			got = append(got, d.TOS)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("TOS %v, want %v", got, want)
	}
}

// Where a batch cannot be sent with UDP_SEGMENT, its datagrams are sent separately, by few calls, and none is lost or counted twice.
func TestUDPBatchWithoutSegmentation(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	w.send(forwardlab.Guest4, h.At, "x")
	h.Receive(t)
	w.mu.Lock()
	f := w.flows[flowKey{0, protoUDP, forwardlab.Guest4, h.At}]
	f.single, f.linkAt = true, w.now()
	s := f.s
	w.mu.Unlock()
	calls := s.sends
	for _, c := range []struct{ size, count, tail, calls int }{{1000, 10, 1, 2}, {1000, 2, 0, 1}, {100, 150, 7, 4}, {1, 3, 0, 1}, {30000, 2, 0, 1}} {
		batch := strings.Repeat(strings.Repeat("a", c.size), c.count) + strings.Repeat("b", c.tail)
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: []byte(batch), TTL: 64, GSOSize: uint16(c.size)})
		for range c.count {
			if got, _ := h.Receive(t); len(got) != c.size || strings.Contains(got, "b") {
				t.Fatalf("%+v: %d bytes", c, len(got))
			}
		}
		if c.tail > 0 {
			if got, _ := h.Receive(t); got != strings.Repeat("b", c.tail) {
				t.Fatalf("%+v: the last has %d bytes", c, len(got))
			}
		}
		if n := s.sends - calls; n != c.calls {
			t.Errorf("%+v: %d calls", c, n)
		}
		calls = s.sends
	}
	h.ReceiveNothing(t)
	// A batch that can be sent with UDP_SEGMENT is one call, and so is a single datagram.
	w.advance(linkLife)
	for _, gso := range []uint16{1000, 0} {
		w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: make([]byte, 20000), TTL: 64, GSOSize: gso})
		if n := s.sends - calls; n != 1 {
			t.Errorf("%d calls with GSOSize %d", n, gso)
		}
		calls = s.sends
	}
	if st := w.Stats(); st.OutPackets != 1+11+2+151+3+2+20+1 || len(st.Drops) != 0 {
		t.Errorf("%+v", st)
	}
}

// If a batch is lost, each of its datagrams is counted.
func TestUDPBatchLossIsCounted(t *testing.T) {
	h := forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, nil)
	w.send(forwardlab.Guest4, h.At, "x")
	h.Receive(t)
	w.mu.Lock()
	s := w.flows[flowKey{0, protoUDP, forwardlab.Guest4, h.At}].s
	w.mu.Unlock()
	s.sendMu.Lock()
	s.sendClosed = true
	s.sendMu.Unlock()
	w.HandleUDP(&stack.Datagram{Flow: stack.Flow{Src: forwardlab.Guest4, Dst: h.At}, Payload: make([]byte, 1001), TTL: 64, GSOSize: 100})
	if st := w.Stats(); w.drops(DropClosed) != 11 || st.OutPackets != 1 || st.OutBytes != 1 {
		t.Errorf("%+v", st)
	}
}

// nullGuest discards every datagram.
type nullGuest struct{ guest }

func (nullGuest) WriteUDP(*stack.Datagram) error { return nil }

func TestUDPInboundAllocatesNothing(t *testing.T) {
	h, client := forwardlab.ListenUDP(t, "127.0.0.1:0"), forwardlab.ListenUDP(t, "127.0.0.1:0")
	w := newWorld(t, func(c *worldConfig) { c.guest = nullGuest{} })
	p, err := w.ListenUDP(UDPListen{Addr: forwardlab.AP("127.0.0.1:0"), Guest4: forwardlab.Guest4})
	if err != nil {
		t.Fatal(err)
	}
	w.send(forwardlab.Guest4, h.At, "x")
	_, from := h.Receive(t)
	payload := make([]byte, 1200)
	for _, c := range []struct {
		from *forwardlab.Host
		to   netip.AddrPort
	}{{h, from}, {client, p.Addr()}} {
		burst := func() {
			want := w.count.inPkts.Load() + 20
			for range 20 {
				_, _ = c.from.WriteToUDPAddrPort(payload, c.to)
			}
			for end := time.Now().Add(forwardlab.Patience); w.count.inPkts.Load() != want; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("%d datagrams are missing", want-w.count.inPkts.Load())
				}
			}
		}
		burst()
		if n := testing.AllocsPerRun(50, burst); n >= 1 {
			t.Errorf("%v allocations for 20 datagrams to %v", n, c.to)
		}
	}
}
