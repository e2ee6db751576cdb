package stack

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"rootlessnet/tap"
)

const (
	// gsoMaxSize is the size in bytes of the largest TCP frame written to a device, which Linux limits (GSO_LEGACY_MAX_SIZE,
	// include/linux/netdevice.h).
	gsoMaxSize = 65536
	// gsoHeaders is how many bytes of it netstack reserves for headers (Ethernet, IPv6 and TCP with all options).
	gsoHeaders = 161
	// MaxSegment is the payload of the largest frame in bytes. A write of that size is one chunk of netstack's memory and one
	// frame; a larger write is split.
	MaxSegment = gsoMaxSize - gsoHeaders

	tcpCsumOffset = 16 // of the checksum field in a TCP header (RFC 9293)
	udpCsumOffset = 6  // RFC 768
)

// link is netstack's NIC. It turns packets into frames with a virtio-net header and writes them at once, on the sender's goroutine.
// gVisor's own link/fdbased is not used because it enables segmentation offload for sockets only, and ends its loop on a frame for
// another MAC address.
type link struct {
	s         *Stack
	mtu       uint32
	addr      tcpip.LinkAddress
	csum, tso bool

	mu       sync.RWMutex
	dispatch gstack.NetworkDispatcher // guarded by mu
}

var (
	_ gstack.LinkEndpoint = (*link)(nil)
	_ gstack.GSOEndpoint  = (*link)(nil)
)

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.addr }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Capabilities claims receive checksum offload because the receive loop verifies checksums: netstack has no way to mark a single
// packet's checksum as partial. It does not claim link resolution: the port has the guest's link address.
func (l *link) Capabilities() gstack.LinkEndpointCapabilities {
	c := gstack.CapabilityRXChecksumOffload
	if l.csum {
		c |= gstack.CapabilityTXChecksumOffload
	}
	return c
}

func (l *link) GSOMaxSize() uint32 { return gsoMaxSize }

func (l *link) SupportedGSO() gstack.SupportedGSO {
	if l.tso {
		return gstack.HostGSOSupported
	}
	return gstack.GSONotSupported
}

func (l *link) Attach(d gstack.NetworkDispatcher) {
	l.mu.Lock()
	l.dispatch = d
	l.mu.Unlock()
}

func (l *link) IsAttached() bool { return l.dispatcher() != nil }

func (l *link) dispatcher() gstack.NetworkDispatcher {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatch
}

func (l *link) AddHeader(p *gstack.PacketBuffer) {
	h := p.LinkHeader().Push(header.EthernetMinimumSize)
	copy(h[6:12], l.addr)
	binary.BigEndian.PutUint16(h[12:14], uint16(p.NetworkProtocolNumber))
}

func (l *link) ParseHeader(p *gstack.PacketBuffer) bool {
	_, ok := p.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// txScratch is the memory of one WritePackets call, pooled so that a packet costs no allocation.
type txScratch struct {
	frames []tap.Frame
	bufs   [][]byte
}

var txPool = sync.Pool{New: func() any {
	return &txScratch{frames: make([]tap.Frame, 1), bufs: make([][]byte, 0, 16)}
}}

// release clears all references to sent data, including those of packets with more buffers than the last one.
func (t *txScratch) release() {
	clear(t.bufs[:cap(t.bufs)])
	t.frames[0] = tap.Frame{}
	txPool.Put(t)
}

func (l *link) WritePackets(pkts gstack.PacketBufferList) (int, tcpip.Error) {
	t := txPool.Get().(*txScratch)
	n := 0
	for _, pkt := range pkts.AsSlice() {
		dst, proto, ok := destination(pkt)
		if !ok {
			l.s.stats.drop(DropTxMalformed)
			continue
		}
		if proto != protoTCP {
			// In promiscuous mode, netstack would send everything else (reassembly timeouts, parameter problems, neighbour
			// advertisements) in the name of addresses that are not its own.
			l.s.stats.drop(DropTxNotTCP)
			continue
		}
		p := l.s.portFor(dst)
		if p == nil {
			l.s.stats.drop(DropNoPort)
			continue
		}
		t.bufs = t.bufs[:0]
		lh := pkt.LinkHeader().Slice()
		p.putGuestMAC(lh[0:6])
		f := &t.frames[0]
		if t := pkt.TransportHeader().Slice(); len(t) >= header.TCPMinimumSize && (t[13]&byte(header.TCPFlagSyn) != 0 || l.s.conns.urgent.Load() > 0) {
			l.s.markUrgent(pkt.NetworkHeader().Slice(), t, pkt.Data().Size(), !l.csum)
		}
		f.Header = l.virtioHeader(pkt)
		views, skip := pkt.AsViewList() // the first view starts with unused space reserved for headers
		for v := views.Front(); v != nil; v = v.Next() {
			b := v.AsSlice()
			if skip >= len(b) {
				skip -= len(b)
				continue
			}
			t.bufs = append(t.bufs, b[skip:])
			skip = 0
		}
		f.Bufs = t.bufs
		if w, err := p.dev.WriteFrames(t.frames[:1]); err == nil {
			n += w
		}
	}
	t.release()
	return n, nil
}

// destination returns the destination address and the transport protocol of an outgoing packet; ok is false if it has no IP header.
func destination(p *gstack.PacketBuffer) (dst netip.Addr, proto uint8, ok bool) {
	h := p.NetworkHeader().Slice()
	switch {
	case p.NetworkProtocolNumber == header.IPv4ProtocolNumber && len(h) >= header.IPv4MinimumSize:
		return netip.AddrFrom4([4]byte(h[16:20])), h[9], true
	case p.NetworkProtocolNumber == header.IPv6ProtocolNumber && len(h) >= header.IPv6MinimumSize:
		return netip.AddrFrom16([16]byte(h[24:40])), h[6], true
	}
	return netip.Addr{}, 0, false
}

// headerAddresses returns source and destination of an IP header.
func headerAddresses(h []byte) (src, dst tcpip.Address) {
	if h[0]>>4 == 4 {
		return tcpip.AddrFromSlice(h[12:16]), tcpip.AddrFromSlice(h[16:20])
	}
	return tcpip.AddrFromSlice(h[8:24]), tcpip.AddrFromSlice(h[24:40])
}

// virtioHeader returns the virtio-net header, which describes to the guest's kernel what remains to be done. With checksum offload
// netstack leaves the checksum of TCP packets that need no segmentation (SYN-ACK, RST, ACK) at zero; they get the pseudo-header
// sum here.
func (l *link) virtioHeader(p *gstack.PacketBuffer) (h tap.Header) {
	if !l.csum || p.TransportProtocolNumber != header.TCPProtocolNumber {
		return h
	}
	netHdr, tcpHdr := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(tcpHdr) < header.TCPMinimumSize {
		return h
	}
	h.Flags = tap.FlagNeedsCsum
	h.CsumStart = uint16(header.EthernetMinimumSize + len(netHdr))
	h.CsumOffset = tcpCsumOffset
	size := len(tcpHdr) + p.Data().Size()
	g := &p.GSOOptions
	if g.Type == gstack.GSONone || !g.NeedsCsum {
		binary.BigEndian.PutUint16(tcpHdr[tcpCsumOffset:], pseudoSum(netHdr, header.TCPProtocolNumber, size))
	}
	if g.Type != gstack.GSONone && p.Data().Size() > int(g.MSS) {
		h.HdrLen = uint16(header.EthernetMinimumSize + len(netHdr) + len(tcpHdr))
		h.GSOSize = g.MSS
		h.GSOType = tap.GSOTCPv4
		if g.Type == gstack.GSOTCPv6 {
			h.GSOType = tap.GSOTCPv6
		}
	}
	return h
}

// pseudoSum is the folded, not inverted, sum of the pseudo header (RFC 9293 3.1, RFC 8200 8.1): what a partial
// checksum field must hold.
func pseudoSum(netHdr []byte, proto tcpip.TransportProtocolNumber, size int) uint16 {
	var src, dst []byte
	if netHdr[0]>>4 == 4 {
		src, dst = netHdr[12:16], netHdr[16:20]
	} else {
		src, dst = netHdr[8:24], netHdr[24:40]
	}
	sum := checksum.Checksum(src, 0)
	sum = checksum.Checksum(dst, sum)
	sum = checksum.Combine(sum, uint16(proto))
	// In the pseudo header of IPv6 the length has 32 bits; with its headers a GSO frame can exceed 16 bits.
	sum = checksum.Combine(sum, uint16(size>>16))
	return checksum.Combine(sum, uint16(size))
}
