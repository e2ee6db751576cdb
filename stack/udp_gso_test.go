package stack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"

	"rootlessnet/internal/nettest"
	"rootlessnet/internal/race"
	"rootlessnet/tap"
)

// datagramsOf splits what the handler received into single datagrams, by destination.
func datagramsOf(t *testing.T, got []Datagram) map[netip.AddrPort][][]byte {
	t.Helper()
	out := map[netip.AddrPort][][]byte{}
	for _, d := range got {
		size := int(d.GSOSize)
		if size == 0 {
			out[d.Dst] = append(out[d.Dst], d.Payload)
			continue
		}
		if n := (len(d.Payload) + size - 1) / size; n < 2 || n > batchDatagrams || len(d.Payload) > maxIPv4UDP {
			t.Errorf("a GSO batch of %d datagrams and %d bytes", n, len(d.Payload))
		}
		for rest := d.Payload; len(rest) > 0; {
			n := min(size, len(rest))
			out[d.Dst] = append(out[d.Dst], rest[:n])
			rest = rest[n:]
		}
	}
	return out
}

func sameDatagrams(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d datagrams, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("datagram %d has %d bytes, want %d, or different ones", i, len(got[i]), len(want[i]))
		}
	}
}

func TestReadyDatagramsAreOneBatch(t *testing.T) {
	b := newBench(t, offloads(), nil)
	for _, a := range families {
		src, dst := ap(a.guest, 4000), ap(a.far, 5000)
		var frames, want [][]byte
		for i := range 30 {
			n := 1000
			if i == 29 {
				n = 300 // the last may be shorter
			}
			want = append(want, bytes.Repeat([]byte{byte(i)}, n))
			frames = append(frames, udpFrame(src, dst, want[i]))
		}
		b.dev.InjectBytes(frames...)
		b.settle()
		got := b.h.takeUDP()
		if len(got) != 1 || got[0].GSOSize != 1000 || got[0].TTL != 61 || got[0].TOS != 0x48 || !got[0].DF || got[0].Src != src {
			t.Fatalf("%d batches, the first with %d bytes, GSOSize %d", len(got), len(got[0].Payload), got[0].GSOSize)
		}
		sameDatagrams(t, datagramsOf(t, got)[dst], want)
	}
}

// TestBatchesWithoutPoller: on a device that is not a tap.Poller, batches are delivered before the next read, which may block
// forever.
func TestBatchesWithoutPoller(t *testing.T) {
	for n := rxBatch - 1; n <= 2*rxBatch; n++ {
		h := &recorder{}
		s, err := New(Config{Gateway4: gw4, Subnet4: netip.MustParsePrefix("10.0.2.0/24"), Guest4: guest4, MTU: 1500, Handler: h})
		if err != nil {
			t.Fatal(err)
		}
		dev := nettest.NewFakeDevice(noOffload())
		for range n {
			dev.InjectBytes(udpFrame(ap(guest4, 4000), ap(far4, 5000), make([]byte, 100)))
		}
		if err := s.AddPort(0, struct{ tap.Device }{dev}, guestMAC, nil); err != nil {
			t.Fatal(err)
		}
		got := 0
		for end := time.Now().Add(5 * time.Second); got < n && time.Now().Before(end); time.Sleep(time.Millisecond) {
			for _, d := range h.takeUDP() {
				if got++; d.GSOSize > 0 {
					got += (len(d.Payload) - 1) / int(d.GSOSize)
				}
			}
		}
		if got != n {
			t.Errorf("%d datagrams of %d were delivered", got, n)
		}
		s.Close()
	}
}

// Datagrams of one flow arrive in order and in number as they were sent, whatever their sizes and properties.
func TestBatchesKeepDatagrams(t *testing.T) {
	b := newBench(t, offloads(), func(c *Config) { c.MTU = 65520 })
	r := rand.New(rand.NewPCG(1, 2))
	sizes := []int{0, 0, 1, 1, 500, 500, 500, 500, 1400, 9000, 32754, 40000, 65000}
	for round := range 60 {
		want := map[netip.AddrPort][][]byte{}
		var frames []tap.Frame
		size := 500
		for i := range 1 + r.IntN(200) {
			if r.IntN(4) == 0 {
				size = sizes[r.IntN(len(sizes))]
			}
			a := families[r.IntN(len(families))]
			src, dst := ap(a.guest, 4000), ap(a.far, uint16(5000+r.IntN(1+round%7)))
			p := pattern(size)
			if size > 0 {
				p[0] = byte(i)
			}
			f := udpFrame(src, dst, p)
			var h tap.Header
			if r.IntN(10) == 0 && size > 1 { // a GSO frame sent by the guest
				h = tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: uint16(size/2 + 1)}
				want[dst] = append(want[dst], p[:size/2+1], p[size/2+1:])
				if size == 2 {
					want[dst] = append(want[dst][:len(want[dst])-2], p)
				}
			} else {
				want[dst] = append(want[dst], p)
			}
			frames = append(frames, tap.Frame{Header: h, Bufs: [][]byte{f}})
		}
		b.dev.Inject(frames...)
		b.settle()
		got := datagramsOf(t, b.h.takeUDP())
		for dst := range want {
			sameDatagrams(t, got[dst], want[dst])
		}
	}
}

func TestBatchEndsWhenPropertiesDiffer(t *testing.T) {
	b := newBench(t, offloads(), nil)
	src, dst := ap(guest4, 4000), ap(far4, 5000)
	change := func(f []byte, at int, v byte) []byte {
		f[ethLen+at] = v
		putIPv4Checksum(f[ethLen:])
		return f
	}
	one := func() []byte { return udpFrame(src, dst, pattern(100)) }
	b.dev.InjectBytes(one(), one(), change(one(), 1, 3), change(one(), 8, 5), change(one(), 6, 0), one(), one())
	b.settle()
	var got []string
	for _, d := range b.h.takeUDP() {
		got = append(got, fmt.Sprint(d.TTL, d.TOS, d.DF, len(d.Payload)))
	}
	want := "[61 72 true 200 61 3 true 100 5 72 true 100 61 72 false 100 61 72 true 200]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A fragmented datagram does not overtake earlier ones of its flow.
func TestFragmentsDoNotOvertakeBatches(t *testing.T) {
	b := newBench(t, offloads(), nil)
	for _, a := range families {
		src, dst := ap(a.guest, 4000), ap(a.far, 5000)
		frames := [][]byte{udpFrame(src, dst, []byte("first")), udpFrame(src, dst, []byte("secnd"))}
		frames = append(frames, fragments(a.guest, a.far, protoUDP, 9, udpBytes(src, dst, pattern(3000)), 1400)...)
		b.dev.InjectBytes(append(frames, udpFrame(src, dst, []byte("last")))...)
		b.settle()
		sameDatagrams(t, datagramsOf(t, b.h.takeUDP())[dst], [][]byte{[]byte("first"), []byte("secnd"), pattern(3000), []byte("last")})
	}
}

// panics is a handler that panics for one destination port.
type panics struct{ *recorder }

func (p panics) HandleUDP(d *Datagram) {
	if d.Dst.Port() == 13 {
		panic("unlucky")
	}
	p.recorder.HandleUDP(d)
}

func TestPanicLosesOneBatch(t *testing.T) {
	var rec *recorder
	b := newBench(t, offloads(), func(c *Config) {
		rec = c.Handler.(*recorder)
		c.Handler = panics{rec}
	})
	src := ap(guest4, 4000)
	bad, good := udpFrame(src, ap(far4, 13), pattern(10)), udpFrame(src, ap(far4, 14), pattern(10))
	b.dev.InjectBytes(bad, good, bad, good)
	b.settle()
	if got := rec.takeUDP(); len(got) != 1 || len(got[0].Payload) != 20 || b.drops(DropPanic) != 1 {
		t.Errorf("got %+v, %d panics", got, b.drops(DropPanic))
	}
}

func TestWriteBatchNotContiguous(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		for _, a := range families {
			whole := pattern(2500)
			d := &Datagram{Flow: Flow{Src: ap(a.far, 53), Dst: ap(a.guest, 4000)}, Payload: whole[:1000], More: [][]byte{whole[1000:2000], whole[2000:]}, GSOSize: 1000}
			if err := b.s.WriteUDP(d); err != nil {
				t.Fatal(err)
			}
			if info.USO {
				k := b.next()
				if h := k.raw.Header; h.GSOType != tap.GSOUDPL4 || h.GSOSize != 1000 || !bytes.Equal(k.payload[udpLen:], whole) {
					t.Errorf("header %+v, %d bytes", h, len(k.payload))
				}
				continue
			}
			for off := 0; off < 2500; off += 1000 {
				if k := b.next(); !bytes.Equal(k.payload[udpLen:], whole[off:min(off+1000, 2500)]) {
					t.Errorf("the datagram at %d is wrong", off)
				}
			}
		}
		b.quiet("a GSO batch")
	})
}

func TestBatchesDoNotAllocate(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // garbage collection empties the pools
	s, err := New(Config{Gateway4: gw4, Subnet4: netip.MustParsePrefix("10.0.2.0/24"), MTU: 65520, CSum: true, Handler: ignore{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := newPort(s, 0, sink{}, guestMAC)
	s.ports.Store(&[]*port{p})
	defer s.ports.Store(&[]*port{})
	payload := pattern(1400)
	b := udpFrame(ap(guest4, 4000), ap(far4, 5000), payload)
	r := &rx{view: buffer.NewViewSize(rxViewSize)}
	defer r.view.Release()
	copy(r.view.AsSlice(), b)
	f := &tap.Frame{Len: len(b)}
	if n := testing.AllocsPerRun(100, func() {
		for range 100 {
			p.receive(f, r)
		}
		p.detachBatches()
		p.flush()
	}); n >= 1 && !race.Enabled {
		t.Errorf("%v allocations for 100 datagrams of the guest", n)
	}
	d := &Datagram{Flow: Flow{Src: ap(far4, 53), Dst: ap(guest4, 4000)}, Payload: payload, GSOSize: 1400}
	for range 40 {
		d.More = append(d.More, payload)
	}
	if n := testing.AllocsPerRun(100, func() { _ = s.WriteUDP(d) }); n >= 1 && !race.Enabled {
		t.Errorf("%v allocations for a GSO batch to the guest", n)
	}
}
