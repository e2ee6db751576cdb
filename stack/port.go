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

	"rootlessnet/flow"
	"rootlessnet/internal/spin"
	"rootlessnet/tap"
)

const (
	ethLen = header.EthernetMinimumSize

	// rxBatch is how many frames one read takes at most. Each has a 64 KiB view, also while the device is idle.
	rxBatch = 8

	// rxViewSize is the size of the largest chunk in gVisor's pools. rxTailSize has space for what a packet of 65535 bytes with its
	// Ethernet header has beyond that (13 bytes).
	rxViewSize = buffer.MaxChunkSize
	rxTailSize = 64

	// copyBelow is the size in bytes up to which a frame is copied into a view of its own size. A larger one keeps 64 KiB alive
	// while it is in a receive queue, so that a queue takes at most twice the memory that it accounts for. The large view is
	// then used again without being cleared, which costs as much as the copy.
	copyBelow = rxViewSize / 2
)

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// port is one device of the network, with the addresses of the guest behind it. Only its receiver reads from the device.
type port struct {
	s        *Stack
	endpoint flow.Endpoint
	dev      tap.Device
	// mac is the guest's link address, in the low 48 bits; see learn. Only the receiver writes it.
	mac       atomic.Uint64
	closeOnce sync.Once
	done      chan struct{} // closed by close

	// Used by the receiver alone, for learn.
	deviceMAC   uint64     // the address given to AddPort; 0 if none was
	macSeen     bool       // a frame from mac has arrived since silentSince
	silentSince time.Time  // mac has not been seen since; set when a frame from another address arrives
	lastSrc     netip.Addr // the latest source address added to addrs, to skip further lookups

	// Used by the receiver alone.
	batches gsoBatches
	yield   bool // this handler run has passed a packet to netstack, whose goroutines must run next (spin.Yield)

	mu    sync.RWMutex
	addrs map[netip.Addr]struct{} // addresses seen behind this port; read only in networks with several ports; guarded by mu
}

const (
	// maxPortAddrs bounds the memory that a guest can occupy with source addresses.
	maxPortAddrs = 64

	// macSilence is how long no frame from the guest's link address must have arrived before another address replaces it: long
	// enough that forged frames cannot take over a flow, short enough that a flow survives a change of the address.
	macSilence = 2 * time.Second
)

func newPort(s *Stack, ep flow.Endpoint, dev tap.Device, mac net.HardwareAddr) *port {
	p := &port{s: s, endpoint: ep, dev: dev, addrs: map[netip.Addr]struct{}{}, done: make(chan struct{})}
	m := broadcastMAC
	if len(mac) == 6 {
		copy(m[:], mac)
		p.deviceMAC = macBits(m[:])
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

// learn records that a frame with source address src came from the link address mac, if src is an address of the link. A guest
// has one link address at a time and may change it. But a program that can send raw frames inside could redirect all packets to
// the guest by forging one. Therefore the address given to AddPort is accepted at once, any other only when the current one has
// been silent.
func (p *port) learn(src netip.Addr, mac []byte) {
	s := p.s
	if !s.config().Subnet4.Contains(src) && !s.config().Subnet6.Contains(src) && !(src.Is6() && src.IsLinkLocalUnicast()) ||
		s.isGateway(src) || mac[0]&1 != 0 {
		return
	}
	switch m, old := macBits(mac), p.mac.Load(); {
	case m == old:
		p.macSeen = true
	case m == 0:
	case m == p.deviceMAC || old == macBits(broadcastMAC[:]) || p.silent():
		p.mac.Store(m)
		p.macSeen = true
	}
	if src != p.lastSrc && p.claim(src) {
		p.lastSrc = src
	}
}

// silent reports whether no frame from the current link address has arrived for macSilence.
func (p *port) silent() bool {
	now := time.Now()
	if p.macSeen {
		p.macSeen, p.silentSince = false, now
	}
	return now.Sub(p.silentSince) >= macSilence
}

// claim adds src to the addresses behind this port, and returns false if it is behind another one.
func (p *port) claim(src netip.Addr) bool {
	for _, q := range *p.s.ports.Load() {
		if q != p && q.owns(src) {
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.addrs[src]; !known && len(p.addrs) >= maxPortAddrs {
		for old := range p.addrs { // drop an arbitrary one: temporary IPv6 addresses change all the time
			delete(p.addrs, old)
			break
		}
	}
	p.addrs[src] = struct{}{}
	return true
}

// rx is the buffer of one frame of the receive loop.
type rx struct {
	view *buffer.View
	tail [rxTailSize]byte
}

// receiver is the state of a port's receive loop. handleReady is run by one goroutine at a time.
type receiver struct {
	p      *port
	poll   func([]tap.Frame) (int, error) // PollFrames, or ReadFrames of a device that is not a tap.Poller
	rounds int                            // how often one handler run calls poll at most
	frames []tap.Frame
	slots  []rx
	err    error // final
}

// receiveLoop reads from the device until it ends, and returns the final error.
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
		r.poll, r.rounds = d.PollFrames, maxPollRounds
		if err := d.Serve(r.handleReady); err != nil {
			return err
		}
		return r.err
	}
	for r.handleReady() != spin.Done {
	}
	return r.err
}

// handleReady reads and handles the frames that are ready, and delivers the GSO batches.
func (r *receiver) handleReady() spin.Result {
	p, total := r.p, 0
	p.yield = false
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
		if n < len(r.frames) || err != nil || p.batches.n == 0 || round == r.rounds {
			break
		}
		p.detachBatches()
	}
	p.flush()
	switch {
	case r.err != nil:
		return spin.Done
	case total > 1:
		return spin.Bulk
	case p.yield:
		return spin.Yield
	case total == 1:
		return spin.Progress
	}
	return spin.Idle
}

// panicked counts and logs a recovered panic. attrs are further attributes of the log record.
func (s *Stack) panicked(msg string, e any, attrs ...any) {
	s.stats.drop(DropPanic)
	s.log.Error(msg, append(attrs, "panic", fmt.Sprint(e), "stack", string(debug.Stack()))...)
}

const frameLost = "panic while handling a frame; the frame is dropped"

// receive handles one frame. It returns true if it has passed on the slot's view, so that the slot needs a new one.
func (p *port) receive(f *tap.Frame, r *rx) (taken bool) {
	defer func() {
		// A bug in netstack must lose one frame and not stop the data plane. Netstack may still have a reference to the view,
		// so it is not used again.
		if e := recover(); e != nil {
			p.s.panicked(frameLost, e)
			taken = true
		}
	}()
	s := p.s
	if f.Len == 0 { // the device has dropped the frame and counted it
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

// deliver passes an IP packet of total bytes, of which hdr are headers, to netstack; the Ethernet header counts in neither. If
// the packet is large, the slot's view is passed on without a copy and deliver returns true. The headers then get a view of
// their own, because netstack pulls them up repeatedly, and each pull on a shared chunk copies the whole chunk. With hdr 0 the
// packet is always copied: a fragment that netstack keeps for long must not hold more memory than netstack accounts for.
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
	p.yield = true
	d.DeliverNetworkPacket(proto, pkt)
	return taken
}

// writeFrame sends one frame. The first 14 bytes of bufs[0] are reserved for the Ethernet header: it sets the source and the
// type, and, if the destination is all zeros, the guest's link address as destination.
func (p *port) writeFrame(h tap.Header, proto tcpip.NetworkProtocolNumber, bufs ...[]byte) error {
	return p.writeFrameMore(h, proto, nil, bufs...)
}

// writeFrameMore is writeFrame for a frame that continues with more.
func (p *port) writeFrameMore(h tap.Header, proto tcpip.NetworkProtocolNumber, more [][]byte, bufs ...[]byte) error {
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
