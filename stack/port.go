package stack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"rootlessnet/tap"
)

const (
	ethLen = header.EthernetMinimumSize

	// rxBatch frames are taken per wake-up at most; each pins one 64 KiB view while idle.
	rxBatch = 8

	// rxViewSize is the largest chunk gVisor pools. rxTailSize holds what a frame of 65535 bytes and its Ethernet
	// header have beyond that (13 bytes).
	rxViewSize = buffer.MaxChunkSize
	rxTailSize = 64

	// copyBelow: frames up to this size are copied into a view of their own size, so that an ACK in a receive
	// queue does not pin 64 KiB, and the big view need not be cleared again.
	copyBelow = 8 << 10
)

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// port is one device of the network and the guest behind it. Its receive loop is the only reader of the device.
type port struct {
	s   *Stack
	dev tap.Device
	// mac is the guest's link address, 48 bits. Learned from every IP or ARP frame whose source is in our subnets,
	// so that a guest may change it.
	mac       atomic.Uint64
	closeOnce sync.Once

	// addrs are the addresses seen behind this port; read only when the network has several ports.
	mu    sync.RWMutex
	addrs map[netip.Addr]struct{}
}

// maxPortAddrs bounds what one guest can make us remember.
const maxPortAddrs = 64

func newPort(s *Stack, dev tap.Device, mac net.HardwareAddr) *port {
	p := &port{s: s, dev: dev, addrs: map[netip.Addr]struct{}{}}
	m := broadcastMAC
	if len(mac) == 6 {
		copy(m[:], mac)
	}
	p.mac.Store(macBits(m[:]))
	return p
}

func macBits(m []byte) uint64 {
	return uint64(binary.BigEndian.Uint16(m))<<32 | uint64(binary.BigEndian.Uint32(m[2:6]))
}

func (p *port) putGuestMAC(b []byte) {
	m := p.mac.Load()
	binary.BigEndian.PutUint16(b, uint16(m>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(m))
}

func (p *port) close() { p.closeOnce.Do(func() { _ = p.dev.Close() }) }

func (p *port) owns(a netip.Addr) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	_, ok := p.addrs[a]
	return ok
}

// learn notes that src (in one of our subnets) speaks from mac.
func (p *port) learn(src netip.Addr, mac []byte) {
	if !p.s.cfg.Subnet4.Contains(src) && !p.s.cfg.Subnet6.Contains(src) || p.s.isGateway(src) || mac[0]&1 != 0 {
		return
	}
	if m := macBits(mac); m != p.mac.Load() {
		p.mac.Store(m)
	}
	if len(*p.s.ports.Load()) < 2 {
		return
	}
	if p.owns(src) {
		return
	}
	p.mu.Lock()
	if len(p.addrs) < maxPortAddrs {
		p.addrs[src] = struct{}{}
	}
	p.mu.Unlock()
}

// rx is one slot of the receive loop: where the next frame is read to.
type rx struct {
	view *buffer.View
	tail [rxTailSize]byte
}

func (p *port) receiveLoop() error {
	frames := make([]tap.Frame, rxBatch)
	slots := make([]rx, rxBatch)
	for i := range slots {
		slots[i].view = buffer.NewViewSize(rxViewSize)
		frames[i].Bufs = [][]byte{slots[i].view.AsSlice(), slots[i].tail[:]}
	}
	defer func() {
		for i := range slots {
			slots[i].view.Release()
		}
	}()
	for {
		n, err := p.dev.ReadFrames(frames)
		for i := range frames[:n] {
			if p.receive(&frames[i], &slots[i]) {
				slots[i].view = buffer.NewViewSize(rxViewSize)
				frames[i].Bufs[0] = slots[i].view.AsSlice()
			}
		}
		if err != nil {
			return err
		}
	}
}

// receive handles one frame and says whether it gave away the slot's view.
func (p *port) receive(f *tap.Frame, r *rx) (taken bool) {
	defer func() {
		// A bug in netstack must cost one frame, not the data plane. The view is given up: somebody may hold it.
		if e := recover(); e != nil {
			p.s.stats.drop(DropPanic)
			p.s.log.Error("panic while handling a frame", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
			taken = true
		}
	}()
	s := p.s
	if f.Len == 0 { // dropped, and counted, by the device
		return false
	}
	if f.Len < ethLen {
		s.stats.drop(DropShort)
		return false
	}
	b := r.view.AsSlice()
	if f.Len <= len(b) {
		b = b[:f.Len]
	} else {
		b = append(append(make([]byte, 0, f.Len), b...), r.tail[:f.Len-len(b)]...)
	}
	if [6]byte(b[0:6]) != s.mac && b[0]&1 == 0 {
		s.stats.drop(DropMAC)
		return false
	}
	switch binary.BigEndian.Uint16(b[12:14]) {
	case uint16(header.IPv4ProtocolNumber):
		if !s.cfg.Gateway4.IsValid() {
			break
		}
		return p.receive4(f, b, r)
	case uint16(header.IPv6ProtocolNumber):
		if !s.cfg.Gateway6.IsValid() {
			break
		}
		return p.receive6(f, b, r)
	case uint16(header.ARPProtocolNumber):
		if !s.cfg.Gateway4.IsValid() {
			break
		}
		p.receiveARP(b)
		return false
	}
	s.stats.drop(DropEtherType)
	return false
}

// deliver hands an IP packet of total bytes, of which hdr are headers, to netstack (Ethernet header excluded from both).
// When the packet is large the slot's own view goes along and deliver returns true. The headers then get a view of
// their own: netstack pulls them up again and again, and on a shared chunk each pull copies the whole of it.
func (p *port) deliver(f *tap.Frame, r *rx, proto tcpip.NetworkProtocolNumber, hdr, total int) (taken bool) {
	d := p.s.link.dispatcher()
	if d == nil {
		return false
	}
	var payload buffer.Buffer
	end := ethLen + total
	view := r.view.AsSlice()
	if end <= copyBelow {
		_ = payload.Append(buffer.NewViewWithData(view[:end]))
	} else {
		hdr += ethLen
		_ = payload.Append(buffer.NewViewWithData(view[:hdr]))
		r.view.CapLength(end)
		r.view.TrimFront(hdr)
		_ = payload.Append(r.view)
		if end > rxViewSize {
			_ = payload.Append(buffer.NewViewWithData(r.tail[:end-rxViewSize]))
		}
		taken = true
	}
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: payload})
	defer pkt.DecRef()
	if _, ok := pkt.LinkHeader().Consume(ethLen); !ok {
		return taken
	}
	d.DeliverNetworkPacket(proto, pkt)
	return taken
}

// writeFrame sends one frame whose first 14 bytes are reserved for the Ethernet header, which is filled in here.
func (p *port) writeFrame(h tap.Header, proto tcpip.NetworkProtocolNumber, bufs ...[]byte) error {
	e := bufs[0]
	if b := bufs[0][0:6]; [6]byte(b) == [6]byte{} {
		p.putGuestMAC(b)
	}
	copy(e[6:12], p.s.mac[:])
	binary.BigEndian.PutUint16(e[12:14], uint16(proto))
	t := txPool.Get().(*txScratch)
	t.bufs = append(t.bufs[:0], bufs...)
	t.frames[0] = tap.Frame{Header: h, Bufs: t.bufs}
	_, err := p.dev.WriteFrames(t.frames[:1])
	for i := range t.bufs {
		t.bufs[i] = nil
	}
	t.frames[0] = tap.Frame{}
	txPool.Put(t)
	return err
}
