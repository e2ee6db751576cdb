package stack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"rootlessnet/internal/spin"
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

// port is one device of the network and the guest behind it. Its receiver is the only reader of the device.
type port struct {
	s   *Stack
	dev tap.Device
	// mac is the guest's link address, 48 bits; see learn. Written by the receiver only.
	mac       atomic.Uint64
	closeOnce sync.Once
	done      chan struct{} // closed by close

	// The receiver's own, for learn.
	home    uint64     // the address the device was made with; 0 when it was not told
	heard   bool       // mac was heard since doubted
	doubted time.Time  // when another address was heard last while mac was not silent
	lastSrc netip.Addr // is in addrs

	trains trains // of the receiver
	handed bool   // in its turn something was given to netstack, whose goroutines go on with it

	// addrs are the addresses seen behind this port; read only when the network has several ports.
	mu    sync.RWMutex
	addrs map[netip.Addr]struct{} // guarded by mu
}

const (
	// maxPortAddrs bounds what one guest can make us remember.
	maxPortAddrs = 64

	// macPatience is how long the guest's link address must be silent before another one is believed: long enough
	// that forged frames do not divert a flow under way, short enough that a flow outlives a change of the address.
	macPatience = 2 * time.Second
)

func newPort(s *Stack, dev tap.Device, mac net.HardwareAddr) *port {
	p := &port{s: s, dev: dev, addrs: map[netip.Addr]struct{}{}, done: make(chan struct{})}
	m := broadcastMAC
	if len(mac) == 6 {
		copy(m[:], mac)
		p.home = macBits(m[:])
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

func (p *port) close() {
	p.closeOnce.Do(func() {
		close(p.done)
		_ = p.dev.Close()
	})
}

func (p *port) owns(a netip.Addr) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	_, ok := p.addrs[a]
	return ok
}

// learn notes that src, an address of the link, speaks from mac. A guest has one link address at a time and may change
// it, but whoever can write raw frames inside could divert everybody's packets by forging one: the address the device
// was made with is believed at once, another when the one in use has been silent.
func (p *port) learn(src netip.Addr, mac []byte) {
	s := p.s
	if !s.config().Subnet4.Contains(src) && !s.config().Subnet6.Contains(src) && !(src.Is6() && src.IsLinkLocalUnicast()) ||
		s.isGateway(src) || mac[0]&1 != 0 {
		return
	}
	switch m, old := macBits(mac), p.mac.Load(); {
	case m == old:
		p.heard = true
	case m == 0:
	case m == p.home || old == macBits(broadcastMAC[:]) || p.silent():
		p.mac.Store(m)
		p.heard = true
	}
	if src != p.lastSrc && p.claim(src) {
		p.lastSrc = src
	}
}

// silent says whether the address in use was not heard for macPatience.
func (p *port) silent() bool {
	now := time.Now()
	if p.heard {
		p.heard, p.doubted = false, now
	}
	return now.Sub(p.doubted) >= macPatience
}

// claim remembers that src is behind this port, unless it is behind another one.
func (p *port) claim(src netip.Addr) bool {
	for _, q := range *p.s.ports.Load() {
		if q != p && q.owns(src) {
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.addrs[src]; !known && len(p.addrs) >= maxPortAddrs {
		for old := range p.addrs { // any: temporary IPv6 addresses come and go
			delete(p.addrs, old)
			break
		}
	}
	p.addrs[src] = struct{}{}
	return true
}

// rx is one slot of the receive loop: where the next frame is read to.
type rx struct {
	view *buffer.View
	tail [rxTailSize]byte
}

// receiver is the receive loop of a port, which one goroutine at a time goes through.
type receiver struct {
	p      *port
	poll   func([]tap.Frame) (int, error)
	rounds int // of poll in a turn
	frames []tap.Frame
	slots  []rx
	err    error
}

func (p *port) receiveLoop() error {
	r := receiver{p: p, poll: p.dev.ReadFrames, rounds: 1, frames: make([]tap.Frame, rxBatch), slots: make([]rx, rxBatch)}
	for i := range r.slots {
		r.slots[i].view = buffer.NewViewSize(rxViewSize)
		r.frames[i].Bufs = [][]byte{r.slots[i].view.AsSlice(), r.slots[i].tail[:]}
	}
	defer func() {
		for i := range r.slots {
			r.slots[i].view.Release()
		}
	}()
	if d, ok := p.dev.(tap.Poller); ok {
		r.poll, r.rounds = d.PollFrames, trainRounds
		if err := d.Serve(r.turn); err != nil {
			return err
		}
		return r.err
	}
	for r.turn() != spin.Done {
	}
	return r.err
}

// turn receives what there is.
func (r *receiver) turn() spin.Result {
	p, total := r.p, 0
	p.handed = false
	for round := 1; ; round++ {
		n, err := r.poll(r.frames)
		for i := range r.frames[:n] {
			if p.receive(&r.frames[i], &r.slots[i]) {
				r.slots[i].view = buffer.NewViewSize(rxViewSize)
				r.frames[i].Bufs[0] = r.slots[i].view.AsSlice()
			}
		}
		if total += n; err != nil {
			r.err = err
		}
		if n < len(r.frames) || err != nil || p.trains.n == 0 || round == r.rounds {
			break
		}
		p.keep()
	}
	p.flush()
	switch {
	case r.err != nil:
		return spin.Done
	case total > 1:
		return spin.Bulk
	case p.handed:
		return spin.Yield
	case total == 1:
		return spin.Progress
	}
	return spin.Idle
}

// panicked notes that a frame was lost by a panic.
func (s *Stack) panicked(e any) {
	s.stats.drop(DropPanic)
	s.log.Error("panic while handling a frame", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
}

// receive handles one frame and says whether it gave away the slot's view.
func (p *port) receive(f *tap.Frame, r *rx) (taken bool) {
	defer func() {
		// A bug in netstack must cost one frame, not the data plane. The view is given up: somebody may hold it.
		if e := recover(); e != nil {
			p.s.panicked(e)
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
		if !s.config().Gateway4.IsValid() {
			break
		}
		return p.receive4(f, b, r)
	case uint16(header.IPv6ProtocolNumber):
		if !s.config().Gateway6.IsValid() {
			break
		}
		return p.receive6(f, b, r)
	case uint16(header.ARPProtocolNumber):
		if !s.config().Gateway4.IsValid() {
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
// With hdr 0 the packet is copied: what netstack keeps for long must not hold more memory than it accounts for.
func (p *port) deliver(f *tap.Frame, r *rx, proto tcpip.NetworkProtocolNumber, hdr, total int) (taken bool) {
	d := p.s.link.dispatcher()
	if d == nil {
		return false
	}
	var payload buffer.Buffer
	end := ethLen + total
	view := r.view.AsSlice()
	if end <= copyBelow || hdr == 0 && end <= rxViewSize {
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
	p.handed = true
	d.DeliverNetworkPacket(proto, pkt)
	return taken
}

// writeFrame sends one frame whose first 14 bytes are reserved for the Ethernet header, which is filled in here.
func (p *port) writeFrame(h tap.Header, proto tcpip.NetworkProtocolNumber, bufs ...[]byte) error {
	return p.writePieces(h, proto, nil, bufs...)
}

// writePieces is writeFrame for a frame that goes on with more.
func (p *port) writePieces(h tap.Header, proto tcpip.NetworkProtocolNumber, more [][]byte, bufs ...[]byte) error {
	e := bufs[0]
	if b := bufs[0][0:6]; [6]byte(b) == [6]byte{} {
		p.putGuestMAC(b)
	}
	copy(e[6:12], p.s.mac[:])
	binary.BigEndian.PutUint16(e[12:14], uint16(proto))
	t := txPool.Get().(*txScratch)
	t.bufs = append(append(t.bufs[:0], bufs...), more...)
	t.frames[0] = tap.Frame{Header: h, Bufs: t.bufs}
	_, err := p.dev.WriteFrames(t.frames[:1])
	t.release()
	return err
}
