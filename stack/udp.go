package stack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"rootlessnet/tap"
)

const (
	udpLen     = header.UDPMinimumSize
	maxIPv4UDP = 65535 - header.IPv4MinimumSize - udpLen // payload of the largest datagram, RFC 768 over RFC 791
	maxIPv6UDP = 65535 - udpLen

	defaultTTL = 64 // RFC 1700
	flagDF     = 0x4000
	flagMF     = 0x2000

	dhcpServerPort = 67
	fragHdrLen     = 8 // IPv6 fragment header, RFC 8200 4.5

	// maxGSODatagrams is the most datagrams in a GSO frame of the guest: UDP_MAX_SEGMENTS in include/linux/udp.h. Without this
	// limit a forged header could turn one frame into 65507 datagrams.
	maxGSODatagrams = 128
)

// ErrTooBig is returned by WriteUDP for a payload larger than a datagram can have.
var ErrTooBig = errors.New("stack: datagram too big")

// ErrNoPort is returned if the destination is behind no device of the network.
var ErrNoPort = errors.New("stack: no device for this address")

// receiveUDP checks an unfragmented datagram or GSO frame and delivers it, at once or, if collect is set, combined with others
// of its flow.
func (p *port) receiveUDP(k *packet, collect bool) {
	s := p.s
	if len(k.payload) < udpLen {
		s.stats.drop(DropTransport)
		return
	}
	gso := k.frame.Header.GSOType&^tap.GSOECN == tap.GSOUDPL4
	n := int(binary.BigEndian.Uint16(k.payload[4:6]))
	if gso {
		n = len(k.payload) // in a GSO frame the length field may be that of its first datagram or of the whole
	}
	if n < udpLen || n > len(k.payload) {
		s.stats.drop(DropTransport)
		return
	}
	k.payload = k.payload[:n]
	if !k.checksumOK() {
		s.stats.drop(DropChecksum)
		return
	}
	d := datagramPool.Get().(*Datagram) // a local variable would be allocated for the interface call
	defer datagramPool.Put(d)
	*d = Datagram{
		Flow: Flow{Endpoint: p.endpoint,
			Src: netip.AddrPortFrom(k.src, binary.BigEndian.Uint16(k.payload[0:2])),
			Dst: netip.AddrPortFrom(k.dst, binary.BigEndian.Uint16(k.payload[2:4]))},
		Payload: k.payload[udpLen:],
		TTL:     k.ttl, TOS: k.tos, DF: k.df,
	}
	if gso {
		if n := int(k.frame.Header.GSOSize); n == 0 || len(d.Payload) > n*maxGSODatagrams {
			s.stats.drop(DropGSO)
			return
		}
		if int(k.frame.Header.GSOSize) < len(d.Payload) {
			d.GSOSize = k.frame.Header.GSOSize
		}
	}
	if collect && d.Dst.Port() != dhcpServerPort && !nonUnicast(k.src) && !nonUnicast(k.dst) {
		p.collect(d)
	} else {
		s.handleUDP(p, d)
	}
	d.Payload = nil
}

var datagramPool = sync.Pool{New: func() any { return new(Datagram) }}

func (s *Stack) handleUDP(p *port, d *Datagram) {
	if d.Dst.Port() == dhcpServerPort && d.Dst.Addr().Is4() && (d.Dst.Addr() == s.config().Gateway4 || d.Dst.Addr() == limitedBroadcast) {
		s.handleDHCP(p, d)
		return
	}
	if d.Dst.Port() == dhcp6ServerPort && (d.Dst.Addr() == dhcp6Servers || d.Dst.Addr() == s.router6()) {
		s.handleDHCP6(d)
		return
	}
	if d.Src.Addr().IsUnspecified() {
		s.stats.drop(DropSource)
		return
	}
	if s.handler != nil {
		s.handler.HandleUDP(d)
	}
}

// deliverReassembledUDP is called by netstack with datagrams that it has reassembled from fragments.
func (s *Stack) deliverReassembledUDP(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	ports := *s.ports.Load()
	if len(ports) == 0 {
		return true
	}
	u := pkt.TransportHeader().Slice()
	if len(u) < udpLen {
		s.stats.drop(DropTransport)
		return true
	}
	v := pkt.ToView()
	defer v.Release()
	whole := v.AsSlice()
	ip := pkt.NetworkHeader().Slice()
	off := len(pkt.LinkHeader().Slice()) + len(ip)
	if len(whole) < off {
		s.stats.drop(DropTransport)
		return true
	}
	k := packet{frame: &tap.Frame{}, payload: whole[off:], proto: protoUDP, src: toNetip(id.RemoteAddress), dst: toNetip(id.LocalAddress)}
	k.ttl, k.tos = ttlTOS(ip)
	p := s.portFor(k.src)
	if p == nil {
		p = ports[0]
	}
	p.receiveUDP(&k, false)
	return true
}

// udpScratch holds the headers of one outgoing datagram, or of one fragment.
type udpScratch struct {
	hdr [ethLen + header.IPv6MinimumSize + fragHdrLen + udpLen]byte
}

var udpPool = sync.Pool{New: func() any { return new(udpScratch) }}

// WriteUDP sends a datagram or GSO batch to the guest at d.Dst, from the remote at d.Src. It keeps no reference to d. A
// datagram larger than the MTU is fragmented. A batch is written as one frame if the device has USO, else split here. The error
// is ErrNoPort, ErrTooBig, or tap.ErrClosed; a frame dropped because the guest's queue is full is no error.
func (s *Stack) WriteUDP(d *Datagram) error {
	p := s.portFor(d.Dst.Addr())
	if p == nil {
		s.stats.drop(DropNoPort)
		return ErrNoPort
	}
	size := int(d.GSOSize)
	total := len(d.Payload)
	for _, b := range d.More {
		total += len(b)
	}
	if size == 0 || size >= total {
		return s.writeDatagram(p, d, d.Payload, nil, 0)
	}
	ipLen := header.IPv6MinimumSize
	if d.Dst.Addr().Is4() {
		ipLen = header.IPv4MinimumSize
	}
	fits := ipLen+udpLen+size <= s.config().MTU && total <= min(maxIPv4UDP, size*maxGSODatagrams)
	if fits && s.link.csum && p.dev.Info().USO {
		return s.writeDatagram(p, d, d.Payload, d.More, d.GSOSize)
	}
	for rest := d.Payload; len(rest) > 0; {
		n := min(size, len(rest))
		if err := s.writeDatagram(p, d, rest[:n], nil, 0); err != nil {
			return err
		}
		rest = rest[n:]
	}
	for _, b := range d.More {
		if err := s.writeDatagram(p, d, b, nil, 0); err != nil {
			return err
		}
	}
	return nil
}

// writeDatagram sends payload as one datagram or, with gso not 0, payload and more as one GSO frame with segments of gso bytes.
func (s *Stack) writeDatagram(p *port, d *Datagram, payload []byte, more [][]byte, gso uint16) error {
	v4 := d.Dst.Addr().Is4()
	if v4 != d.Src.Addr().Is4() {
		return fmt.Errorf("stack: datagram %v -> %v mixes families", d.Src, d.Dst)
	}
	ipLen, limit := header.IPv6MinimumSize, maxIPv6UDP
	if v4 {
		ipLen, limit = header.IPv4MinimumSize, maxIPv4UDP
	}
	size := udpLen + len(payload)
	for _, b := range more {
		size += len(b)
	}
	if size-udpLen > limit {
		return ErrTooBig
	}
	fragment := gso == 0 && ipLen+size > s.config().MTU
	t := udpPool.Get().(*udpScratch)
	defer udpPool.Put(t)
	clear(t.hdr[:ethLen])
	hdr := t.hdr[:ethLen+ipLen+udpLen]
	u := hdr[ethLen+ipLen:]
	binary.BigEndian.PutUint16(u[0:], d.Src.Port())
	binary.BigEndian.PutUint16(u[2:], d.Dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(size))
	binary.BigEndian.PutUint16(u[6:], 0)
	var h tap.Header
	sum := pseudoSumAddr(d.Src.Addr(), d.Dst.Addr(), protoUDP, size)
	if s.link.csum && !fragment {
		h = tap.Header{Flags: tap.FlagNeedsCsum, CsumStart: uint16(ethLen + ipLen), CsumOffset: udpCsumOffset}
		if gso != 0 {
			h.GSOType, h.GSOSize, h.HdrLen = tap.GSOUDPL4, gso, uint16(len(hdr))
		}
		binary.BigEndian.PutUint16(u[6:], sum)
	} else {
		binary.BigEndian.PutUint16(u[6:], udpChecksum(checksum.Checksum(payload, checksum.Checksum(u, sum))))
	}
	if fragment {
		return s.writeFragments(p, d.Src.Addr(), d.Dst.Addr(), protoUDP, d.TTL, d.TOS, u, payload)
	}
	if v4 {
		s.ipv4Header(hdr[ethLen:], d.Src.Addr(), d.Dst.Addr(), protoUDP, d.TTL, d.TOS, size, df4(d.DF))
		return p.writeFrameMore(h, header.IPv4ProtocolNumber, more, hdr, payload)
	}
	ipv6Header(hdr[ethLen:], d.Src.Addr(), d.Dst.Addr(), protoUDP, d.TTL, d.TOS, size)
	return p.writeFrameMore(h, header.IPv6ProtocolNumber, more, hdr, payload)
}

// udpChecksum returns the checksum field for a datagram whose sum, pseudo header included, is sum.
func udpChecksum(sum uint16) uint16 {
	if sum == 0xffff {
		return sum // RFC 768: zero means no checksum
	}
	return ^sum
}

func df4(df bool) uint16 {
	if df {
		return flagDF
	}
	return 0
}

// writeFragments sends the IP payload first+rest to the guest, fragmented if it exceeds the link's MTU (RFC 791 3.2, RFC 8200
// 4.5). A datagram that reached the host unfragmented may be larger than the guest's MTU; on a physical network the router in
// front of the guest would fragment it as well. The transport checksum must be complete.
func (s *Stack) writeFragments(p *port, src, dst netip.Addr, proto, ttl, tos uint8, first, rest []byte) error {
	v4 := dst.Is4()
	ipLen, etherType := header.IPv6MinimumSize, header.IPv6ProtocolNumber
	if v4 {
		ipLen, etherType = header.IPv4MinimumSize, header.IPv4ProtocolNumber
	}
	t := udpPool.Get().(*udpScratch)
	defer udpPool.Put(t)
	clear(t.hdr[:ethLen])
	total := len(first) + len(rest)
	if ipLen+total <= s.config().MTU {
		hdr := t.hdr[:ethLen+ipLen]
		if v4 {
			s.ipv4Header(hdr[ethLen:], src, dst, proto, ttl, tos, total, 0)
		} else {
			ipv6Header(hdr[ethLen:], src, dst, proto, ttl, tos, total)
		}
		return p.writeFrame(tap.Header{}, etherType, hdr, first, rest)
	}
	if total > 65535 || v4 && total > 65535-header.IPv4MinimumSize {
		return ErrTooBig
	}
	if !v4 {
		ipLen += fragHdrLen
	}
	step := (s.config().MTU - ipLen) &^ 7
	id := s.ipID.Add(1)
	for off := 0; off < total; off += step {
		n := min(step, total-off)
		more := off+n < total
		hdr := t.hdr[:ethLen+ipLen]
		clear(hdr[:ethLen])
		if v4 {
			flags := uint16(off / 8)
			if more {
				flags |= flagMF
			}
			ip := hdr[ethLen:]
			s.ipv4Header(ip, src, dst, proto, ttl, tos, n, flags)
			binary.BigEndian.PutUint16(ip[4:], uint16(id))
			putIPv4Checksum(ip)
		} else {
			ipv6Header(hdr[ethLen:], src, dst, protoFrag6, ttl, tos, n+fragHdrLen)
			fh := hdr[ethLen+header.IPv6MinimumSize:]
			fh[0], fh[1] = proto, 0
			field := uint16(off)
			if more {
				field |= 1
			}
			binary.BigEndian.PutUint16(fh[2:], field)
			binary.BigEndian.PutUint32(fh[4:], id)
		}
		a := first[min(off, len(first)):min(off+n, len(first))]
		b := rest[max(0, off-len(first)):max(0, off+n-len(first))]
		if err := p.writeFrame(tap.Header{}, etherType, hdr, a, b); err != nil {
			return err
		}
	}
	return nil
}

func putIPv4Checksum(ip []byte) {
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Checksum(ip[:header.IPv4MinimumSize], 0))
}
