package stack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"rootlessnet/internal/race"
	"rootlessnet/tap"
)

// family holds the addresses of the guest, of a remote host and of the gateway, in one address family.
type family struct{ guest, far, gw netip.Addr }

var families = []family{{guest4, far4, gw4}, {guest6, far6, gw6}}

func devices(t *testing.T, f func(t *testing.T, info tap.Info)) {
	for name, info := range map[string]tap.Info{"offload": offloads(), "plain": noOffload()} {
		t.Run(name, func(t *testing.T) { f(t, info) })
	}
}

func TestUDPReachesTheHandler(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, a := range families {
		for _, n := range []int{0, 1, 2, 999, 1472} {
			src, dst := ap(a.guest, 4000), ap(a.far, 53)
			b.dev.InjectBytes(append(udpFrame(src, dst, pattern(n)), make([]byte, 5)...)) // Ethernet padding
			b.settle()
			got := b.h.takeUDP()
			if len(got) != 1 {
				t.Fatalf("%d datagrams of %d bytes", len(got), n)
			}
			d := got[0]
			if d.Src != src || d.Dst != dst || !bytes.Equal(d.Payload, pattern(n)) || d.TTL != 61 || d.TOS != 0x48 || !d.DF || d.GSOSize != 0 {
				t.Errorf("%+v", d)
			}
		}
	}
}

func TestUDPChecksumIsVerified(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, a := range families {
		src, dst := ap(a.guest, 4000), ap(a.far, 53)
		at := ethLen + 20
		if a.guest.Is6() {
			at = ethLen + 40
		}
		bad := udpFrame(src, dst, pattern(9))
		bad[at+8] ^= 1
		long := udpFrame(src, dst, pattern(9))
		binary.BigEndian.PutUint16(long[at+4:], 100)
		short := udpFrame(src, dst, pattern(9))
		binary.BigEndian.PutUint16(short[at+4:], 7)
		cut := ipFrame(a.guest, a.far, protoUDP, []byte{1, 2, 3, 4, 5, 6, 7})
		b.dev.InjectBytes(bad, long, short, cut)
		b.settle()
		if got := b.h.takeUDP(); len(got) != 0 {
			t.Errorf("bad datagrams arrived: %+v", got)
		}
		none := udpFrame(src, dst, pattern(9))
		none[at+6], none[at+7] = 0, 0
		b.dev.InjectBytes(none)
		b.settle()
		if got := b.h.takeUDP(); (len(got) == 1) != a.guest.Is4() {
			t.Errorf("without a checksum, %v: %d arrived", a.guest, len(got))
		}
		// A partial checksum: the guest's kernel leaves the computation to the device.
		part := udpFrame(src, dst, pattern(9))
		part[at+6], part[at+7] = 0x12, 0x34
		b.dev.Inject(tap.Frame{Header: tap.Header{Flags: tap.FlagNeedsCsum, CsumStart: uint16(at), CsumOffset: 6}, Bufs: [][]byte{part}})
		b.settle()
		if got := b.h.takeUDP(); len(got) != 1 {
			t.Errorf("partial checksum: %d arrived", len(got))
		}
	}
	if b.drops(DropChecksum) != 3 || b.drops(DropTransport) != 6 {
		t.Errorf("dropped: %v", b.s.Stats().Drops)
	}
}

func TestInvalidSources(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, src := range []string{"127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "0.1.2.3"} {
		b.dev.InjectBytes(udpFrame(ap(netip.MustParseAddr(src), 5), ap(far4, 5), nil), echoRequest(netip.MustParseAddr(src), gw4, 1, 1, nil),
			ipFrame(netip.MustParseAddr(src), far4, 132, make([]byte, 20)))
	}
	for _, src := range []string{"::1", "ff02::1", "::", "::ffff:127.0.0.1"} {
		b.dev.InjectBytes(udpFrame(ap(netip.MustParseAddr(src), 5), ap(far6, 5), nil), echoRequest(netip.MustParseAddr(src), gw6, 1, 1, nil),
			ipFrame(netip.MustParseAddr(src), far6, 132, make([]byte, 20)))
	}
	b.quiet("a packet with an invalid source")
	if len(b.h.takeUDP()) != 0 || b.drops(DropSource) != 25 {
		t.Errorf("dropped: %v", b.s.Stats().Drops)
	}
}

func TestWriteUDP(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		for _, a := range families {
			for _, n := range []int{0, 1, 2, 3, 1000, 1001} {
				src, dst := ap(a.far, 53), ap(a.guest, 4000)
				if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: src, Dst: dst}, Payload: pattern(n), TTL: 9, TOS: 0xb9, DF: n&1 == 1}); err != nil {
					t.Fatal(err)
				}
				k := b.next()
				if k.src != a.far || k.dst != a.guest || k.ttl != 9 || k.tos != 0xb9 || !bytes.Equal(k.payload[8:], pattern(n)) ||
					binary.BigEndian.Uint16(k.payload) != 53 || binary.BigEndian.Uint16(k.payload[2:]) != 4000 || !bytes.Equal(k.dstMAC, guestMAC) {
					t.Errorf("%d bytes: %+v", n, k)
				}
				if a.guest.Is4() && (k.flags&flagDF != 0) != (n&1 == 1) {
					t.Errorf("flags %#x", k.flags)
				}
				if k.raw.Header.Flags != 0 != info.CSum {
					t.Errorf("header %+v", k.raw.Header)
				}
			}
		}
		if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: ap(far4, 1), Dst: ap(guest4, 1)}, Payload: make([]byte, maxIPv4UDP+1)}); !errors.Is(err, ErrTooBig) {
			t.Errorf("too big: %v", err)
		}
		if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: ap(far6, 1), Dst: ap(guest4, 1)}}); err == nil {
			t.Error("a datagram of mixed address families was accepted")
		}
		b.quiet("a refused datagram")
	})
}

// A computed checksum of zero is sent as 0xffff, because zero means that there is no checksum.
func TestWriteUDPChecksumIsNeverZero(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, a := range families {
		src, dst := ap(a.far, 53), ap(a.guest, 4000)
		u := udpBytes(src, dst, []byte{0, 0})
		fix := binary.BigEndian.Uint16(u[6:]) // with this as payload the sum is all ones
		if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: src, Dst: dst}, Payload: []byte{byte(fix >> 8), byte(fix)}}); err != nil {
			t.Fatal(err)
		}
		if k := b.next(); binary.BigEndian.Uint16(k.payload[6:]) != 0xffff {
			t.Errorf("checksum %x", k.payload[6:8])
		}
	}
}

// reassemble reads the fragments of one packet and reassembles them as a kernel would.
func (b *bench) reassemble() received {
	b.Helper()
	var whole received
	var data []byte
	for {
		k := b.next()
		more, off := k.flags&flagMF != 0, int(k.flags&0x1fff)*8
		if k.dst.Is6() {
			if k.proto != protoFrag6 {
				b.Fatalf("not a fragment: %+v", k)
			}
			h := k.payload
			field := binary.BigEndian.Uint16(h[2:])
			more, off, k.id = field&1 != 0, int(field&^7), binary.BigEndian.Uint32(h[4:])
			k.proto, k.payload = h[0], h[8:]
		}
		if len(k.raw.Bufs[0])-ethLen > b.s.config().MTU || off != len(data) || k.flags&flagDF != 0 || more && len(k.payload)%8 != 0 {
			b.Fatalf("fragment of %d bytes at %d, have %d, flags %#x", len(k.payload), off, len(data), k.flags)
		}
		if off == 0 {
			whole = k
		} else if k.id != whole.id {
			b.Fatal("identification changes within a packet")
		}
		data = append(data, k.payload...)
		if !more {
			whole.payload = data
			b.verify(&whole)
			return whole
		}
	}
}

func TestWriteUDPFragments(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		for _, a := range families {
			most := maxIPv4UDP
			if a.guest.Is6() {
				most = maxIPv6UDP
			}
			for _, n := range []int{1473, 1481, 3001, 65000, most} {
				if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: ap(a.far, 53), Dst: ap(a.guest, 4000)}, Payload: pattern(n), TTL: 9, TOS: 0xb9, DF: true}); err != nil {
					t.Fatal(err)
				}
				k := b.reassemble()
				if k.proto != protoUDP || !bytes.Equal(k.payload[8:], pattern(n)) || int(binary.BigEndian.Uint16(k.payload[4:])) != n+8 || k.ttl != 9 || k.tos != 0xb9 {
					t.Errorf("%d bytes: %d came, %v -> %v", n, len(k.payload), k.src, k.dst)
				}
			}
		}
	})
}

func TestFragmentsAreReassembled(t *testing.T) {
	b := newBench(t, noOffload(), func(c *Config) { c.MTU = 20000 })
	for i, a := range families {
		src, dst := ap(a.guest, 4000), ap(a.far, 53)
		for j, n := range []int{1500, 8001, 30000, 60001, 65000} {
			fs := fragments(a.guest, a.far, protoUDP, uint16(100*i+j), udpBytes(src, dst, pattern(n)), 1480*(1+j*3))
			fs[0], fs[len(fs)-1] = fs[len(fs)-1], fs[0] // the order must not matter
			b.dev.InjectBytes(fs...)
			b.settle()
			got := b.h.takeUDP()
			if len(got) != 1 || got[0].Src != src || got[0].Dst != dst || !bytes.Equal(got[0].Payload, pattern(n)) || got[0].TTL != 61 || got[0].TOS != 0x48 {
				t.Fatalf("%d bytes: %d datagrams, drops %v", n, len(got), b.s.Stats().Drops)
			}
		}
		bad := udpBytes(src, dst, pattern(3000))
		bad[100] ^= 1
		b.dev.InjectBytes(fragments(a.guest, a.far, protoUDP, uint16(100*i+50), bad, 1480)...)
		b.settle()
		if len(b.h.takeUDP()) != 0 {
			t.Error("a datagram with a wrong checksum arrived")
		}
	}
}

// Incomplete and overlapping fragments: the memory they occupy is limited, and a later datagram arrives.
func TestFragmentFlood(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	before := heap()
	rounds := 20000
	if race.Enabled {
		rounds = 5000 // still more than the 4 MiB of each family
	}
	for i := range rounds {
		a := families[i&1]
		fs := fragments(a.guest, a.far, protoUDP, uint16(i), pattern(2960), 1480)
		switch {
		case i%3 == 0:
			b.dev.InjectBytes(fs[1]) // never complete
		default:
			fs[0][ethLen+20+8] ^= 1
			b.dev.InjectBytes(fs[0], fs[0], fs[0]) // overlapping
		}
		if i%1000 == 0 {
			b.settle()
		}
	}
	b.settle()
	b.dev.Written()
	if grown := heap() - before; grown > 24<<20 {
		t.Errorf("fragments occupy %d bytes", grown)
	}
	src, dst := ap(guest4, 4000), ap(far4, 53)
	b.h.takeUDP()
	b.dev.InjectBytes(fragments(guest4, far4, protoUDP, 65000, udpBytes(src, dst, pattern(3000)), 1480)...)
	b.settle()
	if len(b.h.takeUDP()) != 1 {
		t.Error("reassembly does not work any more")
	}
}

func TestGSOFramesOfTheGuest(t *testing.T) {
	b := newBench(t, offloads(), nil)
	for _, a := range families {
		send := func(n int, gso uint16) []Datagram {
			at := len(udpFrame(ap(a.guest, 1), ap(a.far, 2), nil)) - 8
			h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: gso, CsumStart: uint16(at), CsumOffset: 6}
			b.dev.Inject(tap.Frame{Header: h, Bufs: [][]byte{udpFrame(ap(a.guest, 1), ap(a.far, 2), pattern(n))}})
			b.settle()
			return b.h.takeUDP()
		}
		if got := send(50000, 1400); len(got) != 1 || got[0].GSOSize != 1400 || !bytes.Equal(got[0].Payload, pattern(50000)) {
			t.Errorf("GSO frame: %d, drops %v", len(got), b.s.Stats().Drops)
		}
		if got := send(1400, 1400); len(got) != 1 || got[0].GSOSize != 0 {
			t.Errorf("a GSO frame of one datagram: %+v", got)
		}
		before := b.drops(DropGSO)
		if got := append(send(1400, 0), send(60000, 1)...); len(got) != 0 || b.drops(DropGSO) != before+2 {
			t.Errorf("%d invalid GSO frames arrived", len(got))
		}
	}
}

func TestWriteBatch(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		for _, a := range families {
			d := &Datagram{Flow: Flow{Src: ap(a.far, 53), Dst: ap(a.guest, 4000)}, Payload: pattern(10001), GSOSize: 1000}
			if err := b.s.WriteUDP(d); err != nil {
				t.Fatal(err)
			}
			if info.USO {
				k := b.next()
				h := k.raw.Header
				at := len(k.raw.Bufs[0]) - 10001
				want := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 1000, HdrLen: uint16(at), CsumStart: uint16(at - 8), CsumOffset: 6}
				if h != want || binary.BigEndian.Uint16(k.payload[6:]) != pseudoSumAddr(a.far, a.guest, protoUDP, 10009) {
					t.Errorf("header %+v", h)
				}
			} else {
				for off := 0; off < 10001; off += 1000 {
					if k := b.next(); !bytes.Equal(k.payload[8:], d.Payload[off:min(off+1000, 10001)]) {
						t.Errorf("the datagram at %d is wrong", off)
					}
				}
			}
			// Datagrams larger than the MTU are fragmented one by one, whatever offloads the device has.
			d.GSOSize = 4000
			if err := b.s.WriteUDP(d); err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{4000, 4000, 2001} {
				if k := b.reassemble(); len(k.payload) != 8+n {
					t.Errorf("%d bytes, want %d", len(k.payload)-8, n)
				}
			}
		}
		b.quiet("a GSO batch")
	})
}

// A device with USO in a network without partial checksums (because another device lacks them) gets single datagrams.
func TestWriteBatchWithoutChecksumOffload(t *testing.T) {
	b := newBench(t, offloads(), func(c *Config) { c.CSum, c.TSO = false, false })
	if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: ap(far4, 53), Dst: ap(guest4, 4000)}, Payload: pattern(2000), GSOSize: 1000}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if k := b.next(); len(k.payload) != 1008 || k.raw.Header != (tap.Header{}) {
			t.Errorf("%d bytes, header %+v", len(k.payload), k.raw.Header)
		}
	}
}

// sink is a device that accepts and discards all frames.
type sink struct{ tap.Device }

func (sink) WriteFrames(f []tap.Frame) (int, error) { return len(f), nil }
func (sink) Info() tap.Info                         { return offloads() }

type ignore struct{ Handler }

func (ignore) HandleUDP(*Datagram) {}

func TestDatagramsCostNoAllocation(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // garbage collection empties the pools
	s, err := New(Config{Gateway4: gw4, Gateway6: gw6, Subnet4: netip.MustParsePrefix("10.0.2.0/24"), Subnet6: netip.MustParsePrefix("fd00::/64"), MTU: 1500, CSum: true, Handler: ignore{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := newPort(s, 0, sink{}, guestMAC)
	s.ports.Store(&[]*port{p})
	defer s.ports.Store(&[]*port{})
	for _, a := range families {
		d := &Datagram{Flow: Flow{Src: ap(a.far, 53), Dst: ap(a.guest, 4000)}, Payload: pattern(1000)}
		if n := testing.AllocsPerRun(100, func() { _ = s.WriteUDP(d) }); n >= 1 && !race.Enabled {
			t.Errorf("WriteUDP to %v: %v allocations", a.guest, n)
		}
		frame := udpFrame(ap(a.guest, 4000), ap(a.far, 53), pattern(1000))
		r := &rx{view: buffer.NewViewSize(rxViewSize)}
		copy(r.view.AsSlice(), frame)
		f := &tap.Frame{Len: len(frame)}
		if n := testing.AllocsPerRun(100, func() { p.receive(f, r) }); n >= 1 && !race.Enabled {
			t.Errorf("a datagram from %v: %v allocations", a.guest, n)
		}
	}
	if d := s.Stats().Drops; len(d) != 0 {
		t.Errorf("dropped: %v", d)
	}
}

func TestPseudoSums(t *testing.T) {
	for _, a := range families {
		f := udpFrame(ap(a.guest, 1), ap(a.far, 2), pattern(33))
		ip := f[ethLen:]
		n := 20
		if a.guest.Is6() {
			n = 40
		}
		if got, want := pseudoSum(ip[:n], protoUDP, 41), pseudoSumAddr(a.guest, a.far, protoUDP, 41); got != want {
			t.Errorf("%v: %x, want %x", a, got, want)
		}
		if checksum.Checksum(ip[n:], pseudoSum(ip[:n], protoUDP, 41)) != 0xffff {
			t.Error(fmt.Sprint(a), "does not verify")
		}
	}
}
