package stack

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/tap"
)

// fuzzBench is a stack; the test calls its receive path directly, with a handler that answers everything.
type fuzzBench struct {
	s *Stack
	p *port
	r *rx
	f tap.Frame
}

// touch is a Handler that answers everything, so that the send path is tested as well.
type touch struct{ s *Stack }

func (h touch) HandleTCP(q *TCPRequest) { q.Reset() }
func (h touch) HandleUDP(d *Datagram) {
	_ = h.s.WriteUDP(&Datagram{Flow: Flow{Src: d.Dst, Dst: d.Src}, Payload: d.Payload, TTL: d.TTL, TOS: d.TOS, DF: d.DF, GSOSize: d.GSOSize})
	_ = h.s.WriteUDPError(d.Flow, d.Payload, ICMPError{Type: 3, Code: 3})
}
func (h touch) HandleEcho(e *Echo) {
	_ = h.s.WriteEchoReply(&Echo{Src: e.Dst, Dst: e.Src, ID: e.ID, Seq: e.Seq, Payload: e.Payload})
	_ = h.s.WriteEchoError(e, ICMPError{Type: 3, Code: 1})
}
func (h touch) HandleUDPError(Flow, ICMPError) {}

func newFuzzBench(f *testing.F, info tap.Info) *fuzzBench {
	s, err := New(Config{
		Gateway4: gw4, Gateway6: gw6, Subnet4: netip.MustParsePrefix("10.0.2.0/24"), Subnet6: netip.MustParsePrefix("fd00::/64"), Guest4: guest4,
		DNS: []netip.Addr{gw4, gw6}, SearchDomains: []string{"example.org"}, Hostname: "box", MTU: 1500, CSum: info.CSum, TSO: info.TSO,
	})
	if err != nil {
		f.Fatal(err)
	}
	s.SetHandler(touch{s})
	b := &fuzzBench{s: s, p: newPort(s, 0, sink{}, guestMAC), r: &rx{view: buffer.NewViewSize(rxViewSize)}}
	b.f.Bufs = [][]byte{nil, b.r.tail[:]}
	s.ports.Store(&[]*port{b.p})
	f.Cleanup(func() {
		s.ports.Store(&[]*port{}) // the sink has no working Close
		s.Close()
	})
	return b
}

// receive passes one frame to the receive path as receiveLoop does.
func (b *fuzzBench) receive(t *testing.T, h tap.Header, frame []byte) {
	view := b.r.view.AsSlice()
	if len(frame) > len(view)+rxTailSize {
		return
	}
	n := copy(view, frame)
	copy(b.r.tail[:], frame[n:])
	b.f.Header, b.f.Len = h, len(frame)
	if b.p.receive(&b.f, b.r) {
		b.r.view = buffer.NewViewSize(rxViewSize)
	}
	if b.s.stats.drops[DropPanic].Load() != 0 || b.s.stats.drops[DropTxMalformed].Load() != 0 {
		t.Fatalf("a panic, or an outgoing packet without an IP header: %v", b.s.Stats().Drops)
	}
}

// seal fills in the checksums of a frame, so that the fuzzer reaches the code behind their verification.
func seal(frame []byte) {
	if len(frame) < ethLen+header.IPv4MinimumSize {
		return
	}
	copy(frame, gwMAC)
	ip := frame[ethLen:]
	if binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return
	}
	n := int(ip[0]&15) * 4
	if n < header.IPv4MinimumSize || n > len(ip) {
		return
	}
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^sumOf(ip[:n]))
	if ip[9] == protoICMP && len(ip) >= n+icmpLen {
		if total := int(binary.BigEndian.Uint16(ip[2:])); total >= n+icmpLen && total <= len(ip) {
			ip[n+2], ip[n+3] = 0, 0
			binary.BigEndian.PutUint16(ip[n+2:], ^sumOf(ip[n:total]))
		}
	}
}

func seedFrames() (all [][]byte) {
	for _, a := range families {
		u := udpBytes(ap(a.guest, 4000), ap(a.far, 53), pattern(100))
		all = append(all, udpFrame(ap(a.guest, 4000), ap(a.far, 53), pattern(100)), echoRequest(a.guest, a.gw, 1, 1, pattern(9)),
			echoRequest(a.guest, a.far, 1, 1, pattern(9)), tcpFrame(ap(a.guest, 4000), ap(a.far, 80), 1, 0, header.TCPFlagSyn, nil),
			tcpFrame(ap(a.guest, 4000), ap(a.far, 80), 1, 1, header.TCPFlagAck|header.TCPFlagUrg, pattern(20)),
			ipFrame(a.guest, a.far, 132, pattern(30)),
			icmpError(a.guest, a.far, 3, 3, 0, ipFrame(a.far, a.guest, protoUDP, u)[ethLen:]),
			icmpError(a.guest, a.far, 3, 4, 900, tcpFrame(ap(a.far, 80), ap(a.guest, 4000), 1, 1, header.TCPFlagAck, nil)[ethLen:]))
		all = append(all, fragments(a.guest, a.far, protoUDP, 3, u, 48)...)
		all = append(all, fragments(a.guest, a.far, icmpProto(a.far), 4, echoBytes(a.guest, a.far, 1, 1, pattern(80)), 48)...)
	}
	disc, _ := dhcpv4.NewDiscovery(guestMAC)
	rs := make([]byte, 8)
	rs[0] = ndpRouterSolicit
	all = append(all, arpRequest(guestMAC, guest4, gw4), neighborSolicit(guest6, gw6, gw6), icmp6Frame(guest6, allNodes, rs),
		udpFrame(ap(netip.IPv4Unspecified(), 68), ap(limitedBroadcast, 67), disc.ToBytes()))
	for n := range 34 {
		all = append(all, echoRequest(guest4, gw4, 1, 1, nil)[:n])
	}
	return all
}

// FuzzFrame passes any virtio-net header and any bytes to the receive path, as they are and with correct checksums, on networks
// with and without offloads. Nothing may panic.
func FuzzFrame(f *testing.F) {
	on, off := newFuzzBench(f, offloads()), newFuzzBench(f, noOffload())
	for i, frame := range seedFrames() {
		f.Add(uint8(i%3), uint8(0), uint16(0), frame)
		f.Add(uint8(tap.FlagNeedsCsum), uint8(tap.GSOUDPL4), uint16(10), frame)
		f.Add(uint8(tap.FlagNeedsCsum), uint8(tap.GSOTCPv4), uint16(10), frame)
	}
	f.Fuzz(func(t *testing.T, flags, gso uint8, size uint16, frame []byte) {
		h := tap.Header{Flags: flags, GSOType: gso, GSOSize: size, CsumStart: size, CsumOffset: size, HdrLen: size}
		for _, b := range []*fuzzBench{on, off} {
			b.receive(t, h, frame)
		}
		resealed := append([]byte(nil), frame...)
		seal(resealed)
		for _, b := range []*fuzzBench{on, off} {
			b.receive(t, h, resealed)
			h.Flags |= tap.FlagDataValid
			b.receive(t, h, resealed)
		}
	})
}

// FuzzDHCP passes any message to the DHCP server.
func FuzzDHCP(f *testing.F) {
	b := newFuzzBench(f, noOffload())
	disc, _ := dhcpv4.NewDiscovery(guestMAC)
	inform, _ := dhcpv4.NewInform(guestMAC, guest4.AsSlice())
	renew, _ := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithHwAddr(guestMAC), dhcpv4.WithClientIP(guest4.AsSlice()),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionDNSDomainSearchList))
	for _, m := range []*dhcpv4.DHCPv4{disc, inform, renew} {
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) <= 1472 {
			b.receive(t, tap.Header{}, udpFrame(ap(netip.IPv4Unspecified(), 68), ap(limitedBroadcast, 67), message))
		}
	})
}

// FuzzICMPError passes ICMP errors with any quoted bytes to the receive path.
func FuzzICMPError(f *testing.F) {
	b := newFuzzBench(f, offloads())
	for _, a := range families {
		f.Add(a.guest.Is6(), uint8(3), uint8(3), uint32(0), udpFrame(ap(a.far, 53), ap(a.guest, 4000), pattern(20))[ethLen:])
		f.Add(a.guest.Is6(), uint8(2), uint8(4), uint32(40), tcpFrame(ap(a.far, 80), ap(a.guest, 4000), 1, 1, header.TCPFlagAck, nil)[ethLen:])
	}
	f.Fuzz(func(t *testing.T, six bool, typ, code uint8, mtu uint32, quoted []byte) {
		a := families[0]
		if six {
			a = families[1]
		}
		if len(quoted) <= 60000 {
			b.receive(t, tap.Header{}, icmpError(a.guest, a.far, typ, code, mtu, quoted))
		}
	})
}
