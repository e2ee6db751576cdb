package stack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rootlessnet/internal/nettest"
	"rootlessnet/tap"
)

// patience is how long an answer may take; silence is how long a test waits to see that there is none.
const (
	patience = 5 * time.Second
	silence  = 50 * time.Millisecond
)

var (
	gw4    = netip.MustParseAddr("10.0.2.2")
	gw6    = netip.MustParseAddr("fd00::2")
	guest4 = netip.MustParseAddr("10.0.2.15")
	guest6 = netip.MustParseAddr("fd00::15")
	far4   = netip.MustParseAddr("198.51.100.7")
	far6   = netip.MustParseAddr("2001:db8::7")

	gwMAC    = net.HardwareAddr{2, 0x42, 10, 0, 2, 2}
	guestMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x15}
)

// recorder is a Handler that records what it receives.
type recorder struct {
	mu     sync.Mutex
	udp    []Datagram
	echoes []Echo
	errs   []ICMPError
	flows  []Flow // that errs are about
	tcp    func(*TCPRequest)
}

func (r *recorder) HandleTCP(q *TCPRequest) {
	if r.tcp != nil {
		r.tcp(q)
	} else {
		q.Ignore()
	}
}

func (r *recorder) HandleUDP(d *Datagram) {
	c := *d
	c.Payload = append([]byte(nil), d.Payload...)
	r.mu.Lock()
	r.udp = append(r.udp, c)
	r.mu.Unlock()
}

func (r *recorder) HandleEcho(e *Echo) {
	c := *e
	c.Payload = append([]byte(nil), e.Payload...)
	r.mu.Lock()
	r.echoes = append(r.echoes, c)
	r.mu.Unlock()
}

func (r *recorder) HandleUDPError(f Flow, e ICMPError) {
	r.mu.Lock()
	r.flows, r.errs = append(r.flows, f), append(r.errs, e)
	r.mu.Unlock()
}

func (r *recorder) takeUDP() []Datagram {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.udp
	r.udp = nil
	return u
}

func (r *recorder) takeEchoes() []Echo {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.echoes
	r.echoes = nil
	return e
}

// bench is a Stack with one fake device; the test plays the guest.
type bench struct {
	testing.TB
	s   *Stack
	dev *nettest.FakeDevice
	h   *recorder
}

func offloads() tap.Info  { return tap.Info{Kind: tap.KindTAP, CSum: true, TSO: true, USO: true} }
func noOffload() tap.Info { return tap.Info{Kind: tap.KindTAPPlain} }

// newBench starts a stack; change, when not nil, edits its configuration.
func newBench(t testing.TB, info tap.Info, change func(*Config)) *bench {
	t.Helper()
	nettest.CheckLeaks(t)
	h := &recorder{}
	cfg := Config{
		Gateway4: gw4, Gateway6: gw6, Subnet4: netip.MustParsePrefix("10.0.2.0/24"), Subnet6: netip.MustParsePrefix("fd00::/64"),
		Guest4: guest4, DNS: []netip.Addr{gw4, gw6}, SearchDomains: []string{"example.org", "lan"}, Hostname: "box",
		MTU: 1500, CSum: info.CSum, TSO: info.TSO, Handler: h,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	info.MTU, info.MAC = cfg.MTU, guestMAC
	b := &bench{TB: t, s: s, dev: nettest.NewFakeDevice(info), h: h}
	t.Cleanup(s.Close)
	if err := s.AddPort(0, b.dev, guestMAC, nil); err != nil {
		t.Fatal(err)
	}
	if cfg.Gateway6.IsValid() {
		if f := b.next(); f.proto != protoICMPv6 || f.payload[0] != ndpRouterAdvert {
			t.Fatalf("the first frame is not a router advertisement: %+v", f)
		}
	}
	return b
}

// received is a frame that reached the guest, checked and parsed.
type received struct {
	raw      tap.Frame
	dstMAC   net.HardwareAddr
	src, dst netip.Addr
	proto    uint8
	ttl, tos uint8
	flags    uint16 // IPv4 flags and offset
	id       uint32
	payload  []byte // of the IP packet
}

// next reads the next frame to the guest, parses it as an IP packet and verifies all its checksums.
func (b *bench) next() received {
	b.Helper()
	return b.parse(b.dev.MustNext(b, patience))
}

func (b *bench) parse(f tap.Frame) received {
	b.Helper()
	p := f.Bufs[0]
	if len(p) < ethLen || net.HardwareAddr(p[6:12]).String() != gwMAC.String() {
		b.Fatalf("bad Ethernet header: %x", p)
	}
	k := received{raw: f, dstMAC: p[0:6]}
	if f.Header.Flags&tap.FlagNeedsCsum != 0 { // as the guest's kernel would
		part := p[f.Header.CsumStart:]
		if f.Header.GSOType == tap.GSONone {
			binary.BigEndian.PutUint16(part[f.Header.CsumOffset:], ^checksum.Checksum(part, 0))
		}
	}
	ip := p[ethLen:]
	switch binary.BigEndian.Uint16(p[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		h := header.IPv4(ip)
		if !h.IsValid(len(ip)) || !h.IsChecksumValid() || int(h.TotalLength()) != len(ip) {
			b.Fatalf("bad IPv4 header: %x", ip[:20])
		}
		k.src, k.dst, k.proto, k.ttl, k.tos = toNetip(h.SourceAddress()), toNetip(h.DestinationAddress()), h.Protocol(), h.TTL(), ip[1]
		k.flags, k.id, k.payload = binary.BigEndian.Uint16(ip[6:]), uint32(h.ID()), h.Payload()
	case uint16(header.IPv6ProtocolNumber):
		h := header.IPv6(ip)
		if !h.IsValid(len(ip)) || int(h.PayloadLength()) != len(ip)-40 {
			b.Fatalf("bad IPv6 header: %x", ip[:40])
		}
		k.src, k.dst, k.proto, k.ttl = toNetip(h.SourceAddress()), toNetip(h.DestinationAddress()), h.NextHeader(), h.HopLimit()
		k.tos, _ = h.TOS()
		k.payload = h.Payload()
	default:
		b.Fatalf("not IP: %x", p)
	}
	if f.Header.GSOType == tap.GSONone && k.flags&0x3fff == 0 {
		b.verify(&k)
	}
	return k
}

// verify checks the transport checksum of a whole packet.
func (b *bench) verify(k *received) {
	b.Helper()
	sum := uint16(0)
	switch k.proto {
	case protoICMP:
	case protoUDP, protoTCP, protoICMPv6:
		sum = pseudoSumAddr(k.src, k.dst, k.proto, len(k.payload))
	default:
		return
	}
	if checksum.Checksum(k.payload, sum) != 0xffff {
		b.Fatalf("bad transport checksum of %v -> %v, protocol %d, %d bytes", k.src, k.dst, k.proto, len(k.payload))
	}
}

// quiet fails the test if a frame reaches the guest.
func (b *bench) quiet(what string) {
	b.Helper()
	answers := b.settle()
	if f, ok := b.dev.Next(silence); ok { // from a goroutine of netstack's
		answers = append(answers, f)
	}
	for _, f := range answers {
		b.Errorf("%s was answered: %x", what, f.Bufs[0][:min(80, len(f.Bufs[0]))])
	}
}

// settle waits until all frames injected so far have been handled: it sends an echo request to the gateway and waits for the
// reply. It returns the frames that reached the guest before.
func (b *bench) settle() (before []tap.Frame) {
	b.Helper()
	b.dev.InjectBytes(echoRequest(guest4, gw4, settleID, 1, nil))
	for {
		f := b.dev.MustNext(b, patience)
		if bytes.Equal(f.Bufs[0][12:14], []byte{0x08, 0}) {
			if k := b.parse(f); k.proto == protoICMP && k.payload[0] == icmp4EchoReply && binary.BigEndian.Uint16(k.payload[4:]) == settleID {
				return before
			}
		}
		before = append(before, f)
	}
}

// settleID is the identifier in the echo requests of settle.
const settleID = 0xfeed

func (b *bench) drops(r DropReason) uint64 { return b.s.stats.drops[r].Load() }

func ether(kind int, payload []byte) []byte {
	f := append(append([]byte(nil), gwMAC...), guestMAC...)
	return append(binary.BigEndian.AppendUint16(f, uint16(kind)), payload...)
}

// ipFrame wraps an IP payload into a packet and a frame from the guest.
func ipFrame(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	if dst.Is4() {
		ip := make([]byte, 20, 20+len(payload))
		header.IPv4(ip).Encode(&header.IPv4Fields{
			TotalLength: uint16(20 + len(payload)), TTL: 61, TOS: 0x48, ID: 7, Flags: header.IPv4FlagDontFragment, Protocol: proto,
			SrcAddr: fromNetip(src), DstAddr: fromNetip(dst),
		})
		putIPv4Checksum(ip)
		return ether(0x0800, append(ip, payload...))
	}
	ip := make([]byte, 40, 40+len(payload))
	ip[0], ip[1] = 0x64, 0x80 // traffic class 0x48
	binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
	ip[6], ip[7] = proto, 61
	s, d := src.As16(), dst.As16()
	copy(ip[8:], s[:])
	copy(ip[24:], d[:])
	return ether(0x86dd, append(ip, payload...))
}

// udpBytes is a UDP datagram with a valid checksum.
func udpBytes(src, dst netip.AddrPort, data []byte) []byte {
	u := make([]byte, 8, 8+len(data))
	header.UDP(u).Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(8 + len(data))})
	u = append(u, data...)
	binary.BigEndian.PutUint16(u[6:], udpChecksum(checksum.Checksum(u, pseudoSumAddr(src.Addr(), dst.Addr(), protoUDP, len(u)))))
	return u
}

func udpFrame(src, dst netip.AddrPort, data []byte) []byte {
	return ipFrame(src.Addr(), dst.Addr(), protoUDP, udpBytes(src, dst, data))
}

func echoBytes(src, dst netip.Addr, id, seq uint16, data []byte) []byte {
	m := make([]byte, 8, 8+len(data))
	m[0] = icmp4Echo
	sum := uint16(0)
	if dst.Is6() {
		m[0] = icmp6Echo
		sum = pseudoSumAddr(src, dst, protoICMPv6, 8+len(data))
	}
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], seq)
	m = append(m, data...)
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, sum))
	return m
}

func icmpProto(a netip.Addr) uint8 {
	if a.Is4() {
		return protoICMP
	}
	return protoICMPv6
}

func echoRequest(src, dst netip.Addr, id, seq uint16, data []byte) []byte {
	return ipFrame(src, dst, icmpProto(dst), echoBytes(src, dst, id, seq, data))
}

// icmp6Frame fills in the checksum of m and wraps it into a packet with hop limit 255 and a frame.
func icmp6Frame(src, dst netip.Addr, m []byte) []byte {
	m[2], m[3] = 0, 0
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, pseudoSumAddr(src, dst, protoICMPv6, len(m))))
	f := ipFrame(src, dst, protoICMPv6, m)
	f[ethLen+7] = ndpHopLimit
	return f
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// fragments splits an IP payload into fragments with at most size bytes (a multiple of 8) of it each.
func fragments(src, dst netip.Addr, proto uint8, id uint16, payload []byte, size int) (frames [][]byte) {
	for off := 0; off < len(payload); off += size {
		n := min(size, len(payload)-off)
		more := off+n < len(payload)
		if dst.Is4() {
			f := ipFrame(src, dst, proto, payload[off:off+n])
			ip := f[ethLen:]
			binary.BigEndian.PutUint16(ip[4:], id)
			field := uint16(off / 8)
			if more {
				field |= flagMF
			}
			binary.BigEndian.PutUint16(ip[6:], field)
			putIPv4Checksum(ip)
			frames = append(frames, f)
			continue
		}
		field := uint16(off)
		if more {
			field |= 1
		}
		h := []byte{proto, 0, byte(field >> 8), byte(field), 0, 0, byte(id >> 8), byte(id)}
		frames = append(frames, ipFrame(src, dst, protoFrag6, append(h, payload[off:off+n]...)))
	}
	return frames
}

func sumOf(b []byte) uint16 { return checksum.Checksum(b, 0) }

func sumWith(sum uint16, b []byte) uint16 { return checksum.Checksum(b, sum) }
