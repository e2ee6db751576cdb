package stack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"rootlessnet/tap"
)

// peer is the guest's kernel: another netstack on the far end of the fake device.
type peer struct {
	*bench
	ns      *gstack.Stack
	largest atomic.Int64 // size of the largest frame received with a GSO type
	deaf    atomic.Bool  // receives nothing any more
}

func (b *bench) peer() *peer {
	b.Helper()
	p := &peer{bench: b, ns: gstack.New(gstack.Options{
		NetworkProtocols:   []gstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol},
	})}
	ep := channel.New(4096, uint32(b.s.config().MTU), "")
	ep.LinkEPCapabilities = gstack.CapabilityRXChecksumOffload // parse verifies the checksums
	if err := p.ns.CreateNIC(1, ep); err != nil {
		b.Fatal(err)
	}
	for _, a := range []netip.Addr{guest4, guest6} {
		n, bits := header.IPv4ProtocolNumber, 24
		if a.Is6() {
			n, bits = header.IPv6ProtocolNumber, 64
		}
		pa := tcpip.ProtocolAddress{Protocol: n, AddressWithPrefix: tcpip.AddressWithPrefix{Address: fromNetip(a), PrefixLen: bits}}
		if err := p.ns.AddProtocolAddress(1, pa, gstack.AddressProperties{}); err != nil {
			b.Fatal(err)
		}
	}
	p.ns.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pkt := ep.ReadContext(ctx)
			if pkt == nil {
				return
			}
			f := ether(int(pkt.NetworkProtocolNumber), pkt.ToView().AsSlice())
			pkt.DecRef()
			b.dev.InjectBytes(f)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			f, ok := b.dev.Next(silence)
			if !ok || p.deaf.Load() {
				continue
			}
			k := b.parse(f)
			if f.Header.GSOType != tap.GSONone && int64(f.Len) > p.largest.Load() {
				p.largest.Store(int64(f.Len))
			}
			n := header.IPv4ProtocolNumber
			if k.dst.Is6() {
				n = header.IPv6ProtocolNumber
			}
			pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(f.Bufs[0][ethLen:])})
			ep.InjectInbound(n, pkt)
			pkt.DecRef()
		}
	})
	b.Cleanup(func() {
		p.ns.Close()
		cancel()
		wg.Wait()
		p.ns.Destroy()
	})
	return p
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: fromNetip(a.Addr()), Port: a.Port()}
}

func (p *peer) dial(to netip.AddrPort, wait time.Duration) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return gonet.DialContextTCP(ctx, p.ns, full(to), netProto(to.Addr()))
}

func (p *peer) listen(at netip.AddrPort) net.Listener {
	p.Helper()
	l, err := gonet.ListenTCP(p.ns, full(at), netProto(at.Addr()))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { l.Close() })
	return l
}
