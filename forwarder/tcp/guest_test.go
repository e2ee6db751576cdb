package tcp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"rootlessnet/internal/nettest"
	"rootlessnet/policy"
	"rootlessnet/stack"
	"rootlessnet/tap"
)

// The guest of the TCP tests is a second netstack, joined to the gateway by a link in memory.

const (
	wireMTU   = 32 << 10 // large: these tests are about connections, not about packets
	wireQueue = 512      // frames, about what a TAP takes; more are dropped, as there
)

var (
	subnet4 = netip.MustParsePrefix("10.0.2.0/24")
	subnet6 = netip.MustParsePrefix("fd00::/64")
	gwMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	gstMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// wire is both the gateway's tap.Device and the guest's link.
type wire struct {
	toGateway chan []byte
	closed    chan struct{}
	once      sync.Once
	deaf      atomic.Bool // the guest's segments are lost, but for SYNs
	icmp      atomic.Uint32

	mu       sync.RWMutex
	dispatch gstack.NetworkDispatcher // guarded by mu
	toGuest  chan []byte
}

var (
	_ tap.Device          = (*wire)(nil)
	_ gstack.LinkEndpoint = (*wireGuest)(nil)
)

func newWire() *wire {
	return &wire{toGateway: make(chan []byte, wireQueue), toGuest: make(chan []byte, wireQueue), closed: make(chan struct{})}
}

func (w *wire) Info() tap.Info {
	return tap.Info{Kind: tap.KindTAPPlain, Name: "wire", MAC: gstMAC, MTU: wireMTU, CSum: true}
}
func (w *wire) Stats() tap.Stats { return tap.Stats{} }

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

func (w *wire) ReadFrames(frames []tap.Frame) (int, error) {
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

func (w *wire) WriteFrames(frames []tap.Frame) (int, error) {
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

// note keeps type and code of the last ICMP error.
func (w *wire) note(b []byte) {
	switch {
	case len(b) > 36 && b[12] == 8 && b[13] == 0 && b[23] == 1 && b[34] == 3:
		w.icmp.Store(uint32(b[34])<<8 | uint32(b[35]))
	case len(b) > 56 && b[12] == 0x86 && b[20] == 58 && b[54] == 1:
		w.icmp.Store(uint32(b[54])<<8 | uint32(b[55]))
	}
}

func (w *wire) deliverToGuest() {
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

// wireGuest is the guest's end of a wire.
type wireGuest struct{ w *wire }

func (g *wireGuest) MTU() uint32                             { return wireMTU }
func (g *wireGuest) SetMTU(uint32)                           {}
func (g *wireGuest) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (g *wireGuest) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(gstMAC) }
func (g *wireGuest) SetLinkAddress(tcpip.LinkAddress)        {}
func (g *wireGuest) Wait()                                   {}
func (g *wireGuest) Close()                                  {}
func (g *wireGuest) SetOnCloseAction(func())                 {}
func (g *wireGuest) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (g *wireGuest) ParseHeader(*gstack.PacketBuffer) bool   { return true }
func (g *wireGuest) IsAttached() bool                        { return true }
func (g *wireGuest) Capabilities() gstack.LinkEndpointCapabilities {
	return gstack.CapabilityRXChecksumOffload | gstack.CapabilityTXChecksumOffload
}

func (g *wireGuest) AddHeader(p *gstack.PacketBuffer) {
	h := p.LinkHeader().Push(header.EthernetMinimumSize)
	copy(h, gwMAC)
	copy(h[6:], gstMAC)
	binary.BigEndian.PutUint16(h[12:], uint16(p.NetworkProtocolNumber))
}

func (g *wireGuest) Attach(d gstack.NetworkDispatcher) {
	g.w.mu.Lock()
	g.w.dispatch = d
	g.w.mu.Unlock()
}

func (g *wireGuest) WritePackets(list gstack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, p := range list.AsSlice() {
		if t := header.TCP(p.TransportHeader().Slice()); g.w.deaf.Load() && len(t) >= header.TCPMinimumSize && t.Flags() != header.TCPFlagSyn {
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

// tcpWorld is a Streams, its stack, and a guest.
type tcpWorld struct {
	*Streams
	t     testing.TB
	wire  *wire
	gw    *stack.Stack
	guest *gstack.Stack
	stop  func()
}

// newTCPWorld has every port of the host's loopback open on the gateway. It checks for leaks at the end.
func newTCPWorld(t testing.TB, change func(*StreamsConfig)) *tcpWorld {
	t.Helper()
	nettest.CheckLeaks(t)
	return newLeakyWorld(t, change)
}

func newLeakyWorld(t testing.TB, change func(*StreamsConfig)) *tcpWorld {
	t.Helper()
	w := &tcpWorld{t: t, wire: newWire()}
	var err error
	w.gw, err = stack.New(stack.Config{Gateway4: gw4, Gateway6: gw6, Subnet4: subnet4, Subnet6: subnet6, MAC: gwMAC, MTU: wireMTU, CSum: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg := StreamsConfig{Guest: w.gw, Gateway4: gw4, Gateway6: gw6, Guest4: guest4.Addr(), Guest6: guest6.Addr(),
		Subnets: []netip.Prefix{subnet4, subnet6},
		Policy: policy.New(policy.Config{Gateway4: gw4, Gateway6: gw6, Subnet4: subnet4, Subnet6: subnet6,
			HostLoopback: policy.HostLoopback{All: true}})}
	if change != nil {
		change(&cfg)
	}
	w.Streams = NewStreams(cfg)
	w.gw.SetHandler(struct {
		*Streams
		*Datagrams
	}{w.Streams, new(Datagrams)})
	if err := w.gw.AddPort(0, w.wire, gstMAC, nil); err != nil {
		t.Fatal(err)
	}
	w.guest = newGuestStack(t, w.wire)
	delivered := make(chan struct{})
	go func() {
		defer close(delivered)
		w.wire.deliverToGuest()
	}()
	w.stop = sync.OnceFunc(func() {
		w.Close()
		w.gw.Close()
		<-delivered
		w.guest.Destroy()
	})
	t.Cleanup(w.stop)
	return w
}

func newGuestStack(t testing.TB, w *wire) *gstack.Stack {
	t.Helper()
	s := gstack.New(gstack.Options{
		NetworkProtocols:   []gstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{DADConfigs: gstack.DADConfigurations{}})},
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol},
	})
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	tw := tcpip.TCPTimeWaitTimeoutOption(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&rcv, &tw} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateNIC(1, &wireGuest{w}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{guest4.Addr(), guest6.Addr()} {
		proto := ipv4.ProtocolNumber
		if a.Is6() {
			proto = ipv6.ProtocolNumber
		}
		pa := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(1, pa, gstack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	return s
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func protoOf(a netip.AddrPort) tcpip.NetworkProtocolNumber {
	if a.Addr().Is6() {
		return ipv6.ProtocolNumber
	}
	return ipv4.ProtocolNumber
}

// guestConn is a connection as a program in the guest has it.
type guestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// reset closes as with SO_LINGER 0.
func (c *guestConn) reset() { c.ep.Abort() }

// dial connects from the guest; the error is a syscall.Errno.
func (w *tcpWorld) dial(dst netip.AddrPort, timeout time.Duration) (*guestConn, error) {
	var wq waiter.Queue
	ep, terr := w.guest.NewEndpoint(tcp.ProtocolNumber, protoOf(dst), &wq)
	if terr != nil {
		return nil, stack.Errno(terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(full(dst))
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-time.After(timeout):
			terr = &tcpip.ErrTimeout{}
		}
	}
	if terr != nil {
		ep.Abort()
		return nil, stack.Errno(terr)
	}
	return &guestConn{gonet.NewTCPConn(&wq, ep), ep}, nil
}

func (w *tcpWorld) mustDial(dst netip.AddrPort) *guestConn {
	w.t.Helper()
	c, err := w.dial(dst, patience)
	if err != nil {
		w.t.Fatalf("guest to %v: %v", dst, err)
	}
	w.t.Cleanup(func() { c.reset() })
	return c
}

// listen opens a server in the guest.
func (w *tcpWorld) listen(addr netip.AddrPort) *gonet.TCPListener {
	w.t.Helper()
	l, err := gonet.ListenTCP(w.guest, full(addr), protoOf(addr))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// hostListener is a server of the host on a loopback address; at is how the guest calls it.
type hostListener struct {
	*net.TCPListener
	at netip.AddrPort
}

func listenTCP(t testing.TB, addr string) *hostListener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	a := l.Addr().(*net.TCPAddr).AddrPort()
	gw := gw4
	if a.Addr().Is6() {
		gw = gw6
	}
	return &hostListener{l.(*net.TCPListener), netip.AddrPortFrom(gw, a.Port())}
}

func (l *hostListener) accept(t testing.TB) *net.TCPConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(patience))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// pair is one connection from the guest to the host's loopback.
func (w *tcpWorld) pair() (*guestConn, *net.TCPConn) {
	w.t.Helper()
	l := listenTCP(w.t, "127.0.0.1:0")
	before := w.stats.out.Load()
	g := w.mustDial(l.at)
	h := l.accept(w.t)
	eventually(w.t, "both ends are joined", func() bool { return w.stats.out.Load() > before })
	return g, h
}

// isReset says whether err is what a reset gives: gonet wraps netstack's text, not an errno.
func isReset(err error) bool {
	var op *net.OpError
	return errors.Is(err, syscall.ECONNRESET) || errors.As(err, &op) && op.Err.Error() == (&tcpip.ErrConnectionReset{}).String()
}

// eventually waits for what happens on another goroutine.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
