package stack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"

	"rootlessnet/tap"
)

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestGatewayAnswersEcho(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, a := range append(families, family{guest6, far6, linkLocal([6]byte(gwMAC))}) {
		for _, n := range []int{0, 1, 56, 1472 - 20} {
			b.dev.InjectBytes(echoRequest(a.guest, a.gw, 77, 3, pattern(n)))
			k := b.next()
			want := byte(icmp4EchoReply)
			if a.guest.Is6() {
				want = icmp6EchoReply
			}
			if k.src != a.gw || k.dst != a.guest || k.payload[0] != want || !bytes.Equal(k.payload[4:8], []byte{0, 77, 0, 3}) ||
				!bytes.Equal(k.payload[8:], pattern(n)) || k.ttl != 64 || k.tos != 0x48 {
				t.Errorf("%d bytes: %+v", n, k)
			}
		}
	}
	bad := echoRequest(guest4, gw4, 1, 1, pattern(9))
	bad[len(bad)-1] ^= 1
	bad6 := echoRequest(guest6, gw6, 1, 1, pattern(9))
	bad6[len(bad6)-1] ^= 1
	b.dev.InjectBytes(bad, bad6, ipFrame(guest4, gw4, protoICMP, []byte{8, 0, 0}), ipFrame(guest6, gw6, protoICMPv6, []byte{128}))
	b.quiet("a bad echo request")
	if len(b.h.takeEchoes()) != 0 {
		t.Error("the handler got echoes for the gateway")
	}
}

// Echo requests for other addresses reach the handler, fragmented or not, and the stack does not answer them.
func TestEchoToOthers(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for i, a := range families {
		b.dev.InjectBytes(echoRequest(a.guest, a.far, 5, 6, pattern(100)))
		b.dev.InjectBytes(fragments(a.guest, a.far, icmpProto(a.far), uint16(i), echoBytes(a.guest, a.far, 5, 7, pattern(4001)), 1480)...)
		b.quiet("an echo request for a stranger")
		got := b.h.takeEchoes()
		if len(got) != 2 {
			t.Fatalf("%v: %d echoes, drops %v", a.far, len(got), b.s.Stats().Drops)
		}
		for j, n := range []int{100, 4001} {
			e := got[j]
			if e.Src != a.guest || e.Dst != a.far || e.ID != 5 || int(e.Seq) != 6+j || !bytes.Equal(e.Payload, pattern(n)) || e.TTL != 61 || e.TOS != 0x48 {
				t.Errorf("%v %d bytes: %v", a.far, n, e)
			}
			if err := b.s.WriteEchoReply(&Echo{Src: e.Dst, Dst: e.Src, ID: e.ID, Seq: e.Seq, Payload: e.Payload, TTL: 33, TOS: 4}); err != nil {
				t.Fatal(err)
			}
			k := received{}
			if n > 1472 {
				k = b.reassemble()
			} else {
				k = b.next()
			}
			if k.src != a.far || k.ttl != 33 || k.tos != 4 || !bytes.Equal(k.payload[8:], pattern(n)) {
				t.Errorf("reply of %d bytes: %+v", n, k)
			}
		}
		// A fragmented request for the gateway gets a fragmented reply.
		b.dev.InjectBytes(fragments(a.guest, a.gw, icmpProto(a.far), uint16(9+i), echoBytes(a.guest, a.gw, 5, 7, pattern(3000)), 1480)...)
		if k := b.reassemble(); k.src != a.gw || !bytes.Equal(k.payload[8:], pattern(3000)) {
			t.Errorf("large ping of the gateway: %+v", k)
		}
	}
	if err := b.s.WriteEchoReply(&Echo{Src: far4, Dst: guest4, Payload: make([]byte, 65528)}); err == nil {
		t.Error("WriteEchoReply accepted more than fits an IP packet")
	}
}

// Nothing that netstack would send by itself in promiscuous mode reaches the guest.
func TestNoAnswerInTheNameOfOthers(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	mld := icmp6Frame(netip.MustParseAddr("fe80::15"), allNodes, append([]byte{130, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16)...))
	igmp := ipFrame(guest4, netip.MustParseAddr("224.0.0.1"), 2, []byte{0x11, 0, 0xee, 0xff, 0, 0, 0, 0})
	b.dev.InjectBytes(mld, igmp, ipFrame(guest4, far4, 2, []byte{0x11, 0, 0xee, 0xff, 0, 0, 0, 0})[:ethLen+20])
	ns := neighborSolicit(guest6, far6, far6)[ethLen+40:]
	for id, f := range []struct {
		dst     netip.Addr
		proto   uint8
		payload []byte
	}{
		{far6, protoICMPv6, append(ns, make([]byte, 1500)...)},
		{far4, 132, make([]byte, 2000)}, {far6, 132, make([]byte, 2000)}, {far4, 2, make([]byte, 2000)},
		{far4, protoICMP, append([]byte{13, 0, 0xf2, 0xff}, make([]byte, 2000)...)},
		{far4, protoUDP, make([]byte, 2000)}, {far6, protoUDP, make([]byte, 2000)},
		{far6, 60, make([]byte, 2000)}, {far6, 59, make([]byte, 2000)},
		{netip.MustParseAddr("224.0.0.9"), protoUDP, make([]byte, 2000)},
		{limitedBroadcast, protoICMP, echoBytes(guest4, limitedBroadcast, 1, 1, make([]byte, 2000))},
	} {
		src := guest4
		if f.dst.Is6() {
			src = guest6
		}
		b.dev.InjectBytes(fragments(src, f.dst, f.proto, uint16(id), f.payload, 1480)...)
	}
	late := fragments(guest6, far6, protoUDP, 99, make([]byte, 2000), 1480)[1]
	binary.BigEndian.PutUint16(late[ethLen+42:], 0xfff8) // ends beyond 65535: a parameter problem
	odd := fragments(guest6, far6, protoUDP, 98, make([]byte, 2001), 1480)[0]
	binary.BigEndian.PutUint16(odd[ethLen+4:], uint16(len(odd)-ethLen-40-1)) // not a multiple of eight
	b.dev.InjectBytes(late, odd)
	b.quiet("something for others")
	if b.drops(DropTxNotTCP) == 0 || b.drops(DropFragment) == 0 {
		t.Errorf("netstack did not try to answer, so the test has no effect: %v", b.s.Stats().Drops)
	}
}

func TestUnknownProtocolIsRefused(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, a := range families {
		f := ipFrame(a.guest, a.far, 132, pattern(40))
		b.dev.InjectBytes(f)
		k := b.next()
		want := []byte{3, 2, 0, 0, 0, 0}
		if a.guest.Is6() {
			want = []byte{4, 1, 0, 0, 0, 6}
		}
		if k.src != a.gw || !bytes.Equal(k.payload[:2], want[:2]) || !bytes.Equal(k.payload[4:8], want[2:]) || !bytes.Equal(k.payload[8:], f[ethLen:]) {
			t.Errorf("%v: %+v", a.far, k)
		}
	}
	// No error about multicast or broadcast, nor to an unspecified source (RFC 1122 3.2.2).
	many := ipFrame(guest4, far4, 132, pattern(40))
	copy(many, broadcastMAC[:])
	b.dev.InjectBytes(many, ipFrame(guest4, netip.MustParseAddr("224.1.2.3"), 132, nil), ipFrame(guest4, limitedBroadcast, 132, nil),
		ipFrame(netip.IPv4Unspecified(), far4, 132, nil), ipFrame(guest6, allNodes, 132, nil), ipFrame(guest6, far6, 59, nil))
	b.quiet("a packet that forbids an error")
}

// icmpError builds an ICMP error of the guest that quotes a packet.
func icmpError(src, dst netip.Addr, typ, code byte, mtu uint32, quoted []byte) []byte {
	m := binary.BigEndian.AppendUint32([]byte{typ, code, 0, 0}, mtu)
	m = append(m, quoted...)
	if dst.Is6() {
		return icmp6Frame(src, dst, m)
	}
	f := ipFrame(src, dst, protoICMP, m)
	c := f[ethLen+20:]
	binary.BigEndian.PutUint16(c[2:], ^sumOf(c))
	return f
}

func TestErrorsOfTheGuestReachTheHandler(t *testing.T) {
	b := newBench(t, noOffload(), nil)
	for _, a := range families {
		src, dst := ap(a.far, 53), ap(a.guest, 4000)
		if err := b.s.WriteUDP(&Datagram{Flow: Flow{Src: src, Dst: dst}, Payload: pattern(900)}); err != nil {
			t.Fatal(err)
		}
		sent := b.next().raw.Bufs[0][ethLen:]
		typ, code := byte(3), byte(3)
		if a.guest.Is6() {
			typ, code = 1, 4
		}
		b.dev.InjectBytes(icmpError(a.guest, a.far, typ, code, 1234, sent[:min(548, len(sent))]))
		b.settle()
		if len(b.h.errs) != 1 || b.h.flows[0] != (Flow{Src: src, Dst: dst}) || b.h.errs[0] != (ICMPError{From: a.guest, Type: typ, Code: code, MTU: 1234}) {
			t.Errorf("%v: %+v %+v", a.far, b.h.flows, b.h.errs)
		}
		b.h.errs, b.h.flows = nil, nil
		for n := range 60 { // quotes of all lengths, none of which is answered
			if q := sent[:n]; n < 28 || a.guest.Is6() && n < 48 {
				b.dev.InjectBytes(icmpError(a.guest, a.far, typ, code, 0, q))
			}
		}
		wrong := append([]byte(nil), sent[:60]...)
		wrong[0] |= 0x0f // IPv4: a header of 60 bytes without UDP behind it; in IPv6 these bits have another meaning
		if a.guest.Is6() {
			wrong[0] = 0x45
		}
		b.dev.InjectBytes(icmpError(a.guest, a.far, typ, code, 0, wrong))
		if a.guest.Is4() {
			later := append([]byte(nil), sent[:60]...)
			later[7] = 9 // a fragment without ports
			b.dev.InjectBytes(icmpError(a.guest, a.far, typ, code, 0, later))
		}
		b.quiet("an ICMP error")
		if len(b.h.errs) != 0 {
			t.Errorf("%v: errors with invalid quotes arrived: %+v", a.far, b.h.flows)
		}
	}
}

func TestErrorsForTheGuest(t *testing.T) {
	devices(t, func(t *testing.T, info tap.Info) {
		b := newBench(t, info, nil)
		for _, a := range families {
			from := a.far.Next()
			typ, size := uint8(icmp4Unreachable), 576
			if a.guest.Is6() {
				typ, size = icmp6TooBig, 1280
			}
			for _, n := range []int{0, 1, 100, 3000} {
				e := ICMPError{From: from, Type: typ, Code: 4, MTU: 1400}
				if err := b.s.WriteUDPError(Flow{Src: ap(a.guest, 4000), Dst: ap(a.far, 53)}, pattern(n), e); err != nil {
					t.Fatal(err)
				}
				b.checkError(a, from, e, protoUDP, size, func(u []byte) bool {
					return binary.BigEndian.Uint16(u) == 4000 && binary.BigEndian.Uint16(u[2:]) == 53 && int(binary.BigEndian.Uint16(u[4:])) == n+8
				})
				e.From = netip.Addr{}
				if err := b.s.WriteEchoError(&Echo{Src: a.guest, Dst: a.far, ID: 8, Seq: 9, Payload: pattern(n), TTL: 1}, e); err != nil {
					t.Fatal(err)
				}
				b.checkError(a, a.gw, e, icmpProto(a.guest), size, func(m []byte) bool { return bytes.Equal(m[4:8], []byte{0, 8, 0, 9}) })
			}
		}
	})
}

// checkError reads an ICMP error from the device and checks the fields that Linux evaluates.
func (b *bench) checkError(a family, from netip.Addr, e ICMPError, proto uint8, most int, transport func([]byte) bool) {
	b.Helper()
	k := b.next()
	q := k.payload[icmpLen:]
	mtu := uint32(binary.BigEndian.Uint16(k.payload[6:]))
	if a.guest.Is6() {
		mtu = binary.BigEndian.Uint32(k.payload[4:])
	}
	if k.src != from || k.dst != a.guest || k.proto != icmpProto(a.guest) || k.payload[0] != e.Type || k.payload[1] != e.Code || mtu != e.MTU || len(k.raw.Bufs[0])-ethLen > most {
		b.Errorf("error %+v", k)
	}
	n := 20
	src, dst, p := q[12:16], q[16:20], q[9]
	if a.guest.Is6() {
		n = 40
		src, dst, p = q[8:24], q[24:40], q[6]
	}
	if !bytes.Equal(src, a.guest.AsSlice()) || !bytes.Equal(dst, a.far.AsSlice()) || p != proto || !transport(q[n:]) {
		b.Errorf("quote %x", q)
	}
}
