package forwardlab

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"rootlessnet/tap"
)

const (
	// WireMTU is the MTU of a Wire.
	WireMTU   = 32 << 10 // large: these tests are about connections, not about packets
	wireQueue = 512      // frames, about what a TAP takes; more are dropped, as there
)

// Wire is both the gateway's tap.Device and the guest's link.
type Wire struct {
	toGateway chan []byte
	closed    chan struct{}
	once      sync.Once
	OnlySYNs  atomic.Bool   // while it is true the guest's TCP segments are lost, except SYNs
	ICMP      atomic.Uint32 // of the last "destination unreachable" sent to the guest: type<<8 | code; 0: none

	mu       sync.RWMutex
	dispatch gstack.NetworkDispatcher // guarded by mu
	toGuest  chan []byte
}

var (
	_ tap.Device          = (*Wire)(nil)
	_ gstack.LinkEndpoint = (*guestLink)(nil)
)

// NewWire returns a Wire that nothing is attached to. The gateway's stack closes it.
func NewWire() *Wire {
	return &Wire{toGateway: make(chan []byte, wireQueue), toGuest: make(chan []byte, wireQueue), closed: make(chan struct{})}
}

// Info implements tap.Device.
func (w *Wire) Info() tap.Info {
	return tap.Info{Kind: tap.KindTAPPlain, Name: "wire", MAC: GuestMAC, MTU: WireMTU, CSum: true}
}

// Stats implements tap.Device.
func (w *Wire) Stats() tap.Stats { return tap.Stats{} }

// Close implements tap.Device.
func (w *Wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// ReadFrames implements tap.Device.
func (w *Wire) ReadFrames(frames []tap.Frame) (int, error) {
	select {
	case b := <-w.toGateway:
		f := &frames[0]
		f.Len, f.Header = len(b), tap.Header{Flags: tap.FlagDataValid}
		for _, to := range f.Bufs {
			b = b[copy(to, b):]
		}
		return 1, nil
	case <-w.closed:
		return 0, tap.ErrClosed
	}
}

// WriteFrames implements tap.Device.
func (w *Wire) WriteFrames(frames []tap.Frame) (int, error) {
	for i := range frames {
		var b []byte
		for _, piece := range frames[i].Bufs {
			b = append(b, piece...)
		}
		w.note(b)
		select {
		case w.toGuest <- b:
		case <-w.closed:
			return i, tap.ErrClosed
		default: // a full queue drops
		}
	}
	return len(frames), nil
}

// note records type and code of the last ICMP error.
func (w *Wire) note(b []byte) {
	switch {
	case len(b) > 36 && b[12] == 8 && b[13] == 0 && b[23] == 1 && b[34] == 3:
		w.ICMP.Store(uint32(b[34])<<8 | uint32(b[35]))
	case len(b) > 56 && b[12] == 0x86 && b[20] == 58 && b[54] == 1:
		w.ICMP.Store(uint32(b[54])<<8 | uint32(b[55]))
	}
}

// deliverToGuest passes the frames to the guest until the wire is closed.
func (w *Wire) deliverToGuest() {
	for {
		select {
		case b := <-w.toGuest:
			proto := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(b[12:]))
			w.mu.RLock()
			d := w.dispatch
			w.mu.RUnlock()
			if d == nil || proto == header.ARPProtocolNumber {
				continue
			}
			pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
			pkt.LinkHeader().Consume(header.EthernetMinimumSize)
			d.DeliverNetworkPacket(proto, pkt)
			pkt.DecRef()
		case <-w.closed:
			return
		}
	}
}

// guestLink is the guest's end of a Wire.
type guestLink struct{ w *Wire }

func (g *guestLink) MTU() uint32                             { return WireMTU }
func (g *guestLink) SetMTU(uint32)                           {}
func (g *guestLink) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (g *guestLink) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(GuestMAC) }
func (g *guestLink) SetLinkAddress(tcpip.LinkAddress)        {}
func (g *guestLink) Wait()                                   {}
func (g *guestLink) Close()                                  {}
func (g *guestLink) SetOnCloseAction(func())                 {}
func (g *guestLink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (g *guestLink) ParseHeader(*gstack.PacketBuffer) bool   { return true }
func (g *guestLink) IsAttached() bool                        { return true }
func (g *guestLink) Capabilities() gstack.LinkEndpointCapabilities {
	return gstack.CapabilityRXChecksumOffload | gstack.CapabilityTXChecksumOffload
}

func (g *guestLink) AddHeader(p *gstack.PacketBuffer) {
	h := p.LinkHeader().Push(header.EthernetMinimumSize)
	copy(h, GatewayMAC)
	copy(h[6:], GuestMAC)
	binary.BigEndian.PutUint16(h[12:], uint16(p.NetworkProtocolNumber))
}

func (g *guestLink) Attach(d gstack.NetworkDispatcher) {
	g.w.mu.Lock()
	g.w.dispatch = d
	g.w.mu.Unlock()
}

func (g *guestLink) WritePackets(list gstack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, p := range list.AsSlice() {
		if t := header.TCP(p.TransportHeader().Slice()); g.w.OnlySYNs.Load() && len(t) >= header.TCPMinimumSize && t.Flags() != header.TCPFlagSyn {
			continue
		}
		v := p.ToView()
		b := append([]byte(nil), v.AsSlice()...)
		v.Release()
		select {
		case g.w.toGateway <- b:
			n++
		case <-g.w.closed:
		default:
		}
	}
	return n, nil
}
