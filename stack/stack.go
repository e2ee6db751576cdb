package stack

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"rootlessnet/flow"
	"rootlessnet/tap"
)

const (
	nicID = 1

	// maxInFlightSYN bounds the connection attempts that wait for the host's connect. Each costs a goroutine, a segment and a
	// socket, about 10 KiB. With a limit as low as 128, a few black-holed destinations would stop all TCP.
	maxInFlightSYN = 8192

	// Largest buffers of netstack's endpoints in bytes. The link has hardly any latency, so a megabyte keeps it busy. A receive
	// buffer that is read as fast as it fills grows up to the maximum (ModerateReceive); the advertised window is half of it. Data
	// in a larger buffer would have left the processor's cache by the time it is read (bench/scheduler.md). How they grow is in
	// buffers.go.
	tcpReceiveBufferMax = 4 << 20
	tcpSendBuffer       = 1 << 20

	// timeWait is the duration of TIME-WAIT. The forwarder has no listener that could reuse a 4-tuple in TIME-WAIT, so a guest that
	// reconnects from the same port would have to wait for its end. The link does not reorder, so none is needed.
	timeWait = time.Duration(0)

	// closePace is how often Close aborts endpoints that unfinished handshakes have registered since.
	closePace = 5 * time.Millisecond
)

// Config describes a gateway. After New, only SetAddresses changes it.
type Config struct {
	// Gateway4 and Gateway6 are the gateway's own addresses; an invalid address turns the family off.
	Gateway4, Gateway6 netip.Addr
	// Subnet4 and Subnet6 are the prefixes on the link. Subnet6 is announced by RA.
	Subnet4, Subnet6 netip.Prefix
	// Guest4 is the address that DHCPv4 assigns; if it is invalid, DHCPv4 requests are not answered.
	Guest4 netip.Addr
	// Guest6 is the address that DHCPv6 assigns; if it is invalid, DHCPv6 requests are not answered.
	Guest6 netip.Addr
	// DNS is announced by DHCP and RA (RDNSS).
	DNS []netip.Addr
	// Local are further addresses, besides the gateway's, for which ARP, neighbour discovery and ping are answered.
	Local []netip.Addr
	// HostAddresses means that the guest has addresses of the host's networks. ARP and neighbour discovery are then answered for
	// every address but Guests (proxy ARP), and ping to a gateway's address only if it is among Local.
	HostAddresses bool
	// Guests are the guest's own addresses. They are used with HostAddresses only.
	Guests []netip.Addr
	// NoDHCP turns off the DHCPv4 server, NoRA all router advertisements, solicited and periodic.
	NoDHCP, NoRA bool
	// DHCPv6 turns on the DHCPv6 server and sets the managed flag of RAs.
	DHCPv6 bool
	// NoNDP turns off answers to neighbour and router solicitations.
	NoNDP bool
	// SearchDomains are announced by DHCP and RA.
	SearchDomains []string
	// Hostname is sent by DHCPv4, FQDN by DHCPv4 and DHCPv6.
	Hostname, FQDN string
	// MAC is the gateway's link address; nil means one derived from Gateway4.
	MAC net.HardwareAddr
	// MTU is that of the link, in bytes without the Ethernet header.
	MTU int
	// CSum and TSO are the offloads that every device of this network has (tap.Info). Netstack has one NIC for all devices, with
	// fixed offloads.
	CSum, TSO bool
	// TCPBuffers bounds, in bytes, the buffers of all TCP connections; 0 means DefaultTCPBuffers. Each connection may have a few
	// kilobytes beyond it.
	TCPBuffers int64
	// Handler receives the guest's traffic. SetHandler may replace it before the first AddPort.
	Handler Handler
	// Logger; nil discards.
	Logger *slog.Logger
}

// Stack is the gateway of one network. TCP is handled by netstack, everything else by this package. All methods may be called
// from any goroutine.
type Stack struct {
	cfg        atomic.Pointer[Config] // the Config is replaced as a whole, never changed in place
	log        *slog.Logger
	ns         *gstack.Stack
	link       *link
	tcp        *tcp.Forwarder
	syns       synTable
	synLimit   synLimit
	buffers    *bufferBudget
	conns      connTable
	born       time.Time
	deferred   atomic.Int32 // SYNs deferred at this moment, see deferSYN
	handler    Handler
	synHandler SYNHandler
	mac        [6]byte
	ll6        netip.Addr // the gateway's link-local address
	stats      counters
	ports      atomic.Pointer[[]*port]
	ipID       atomic.Uint32

	mu     sync.Mutex // guards closed, writes to ports and writes to cfg
	closed bool
	done   chan struct{}
	wg     sync.WaitGroup
}

// New assembles the gateway. Devices are added with AddPort.
func New(cfg Config) (*Stack, error) {
	if cfg.MTU < header.IPv4MinimumMTU || cfg.MTU > 65535 {
		return nil, fmt.Errorf("stack: MTU %d out of range %d..65535", cfg.MTU, header.IPv4MinimumMTU)
	}
	if cfg.Gateway6.IsValid() && cfg.MTU < header.IPv6MinimumMTU {
		return nil, fmt.Errorf("stack: MTU %d: IPv6 needs %d", cfg.MTU, header.IPv6MinimumMTU)
	}
	if !cfg.Gateway4.IsValid() && !cfg.Gateway6.IsValid() {
		return nil, errors.New("stack: neither IPv4 nor IPv6 gateway address given")
	}
	s := &Stack{log: cfg.Logger, handler: cfg.Handler, done: make(chan struct{}), born: time.Now()}
	s.cfg.Store(&cfg)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.MAC) == 6 {
		copy(s.mac[:], cfg.MAC)
	} else {
		s.mac = [6]byte{0x02, 0x42, 10, 0, 2, 2}
		if cfg.Gateway4.Is4() {
			a := cfg.Gateway4.As4()
			copy(s.mac[2:], a[:])
		}
	}
	s.ll6 = linkLocal(s.mac)
	s.buffers = newBufferBudget(cfg.TCPBuffers)
	s.synLimit.seed = maphash.MakeSeed()
	s.conns.m = map[gstack.TransportEndpointID]*Conn{}
	s.syns.m = make(map[gstack.TransportEndpointID]synInfo)
	s.ports.Store(&[]*port{})

	var nets []gstack.NetworkProtocolFactory
	var routes []tcpip.Route
	if cfg.Gateway4.IsValid() {
		nets = append(nets, ipv4.NewProtocol)
		routes = append(routes, tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nicID})
	}
	if cfg.Gateway6.IsValid() {
		// This package does neighbour and router discovery; netstack's is off.
		nets = append(nets, ipv6.NewProtocolWithOptions(ipv6.Options{
			NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled},
		}))
		routes = append(routes, tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nicID})
	}
	s.ns = gstack.New(gstack.Options{
		NetworkProtocols:   nets,
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.setUp(routes); err != nil {
		s.ns.Destroy()
		return nil, err
	}
	s.tcp = tcp.NewForwarder(s.ns, beginBuffer/2, maxInFlightSYN, s.handleTCP)
	s.ns.SetTransportProtocolHandler(tcp.ProtocolNumber, s.deliverSYN)
	s.ns.SetTransportProtocolHandler(udp.ProtocolNumber, s.deliverReassembledUDP)
	s.ns.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.deliverReassembledICMP)
	s.ns.SetTransportProtocolHandler(icmp.ProtocolNumber6, s.deliverReassembledICMP)
	return s, nil
}

// setUp sets netstack's options and creates its one NIC.
func (s *Stack) setUp(routes []tcpip.Route) error {
	cfg := s.config()
	if err := s.tune(); err != nil {
		return err
	}
	s.link = &link{s: s, mtu: uint32(cfg.MTU), addr: tcpip.LinkAddress(s.mac[:]), csum: cfg.CSum, tso: cfg.TSO && cfg.CSum}
	if err := s.ns.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("stack: create NIC: %v", err)
	}
	s.ns.SetRouteTable(routes)
	// Promiscuous mode accepts packets to every address. Spoofing permits endpoints whose local address is not the NIC's: that of
	// the destination the guest asked for, or that of a client.
	if err := s.ns.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("stack: promiscuous mode: %v", err)
	}
	if err := s.ns.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("stack: spoofing: %v", err)
	}
	return nil
}

func (s *Stack) tune() error {
	sack := tcpip.TCPSACKEnabled(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: beginBuffer, Max: tcpReceiveBufferMax}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: beginBuffer, Max: tcpSendBuffer}
	tw := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &rcv, &snd, &tw} {
		if err := s.ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("stack: TCP option %T: %v", o, err)
		}
	}
	return nil
}

// SetHandler sets the Handler. It must be called before the first AddPort.
func (s *Stack) SetHandler(h Handler) { s.handler = h }

// config returns the current configuration, which the caller must not change.
func (s *Stack) config() *Config { return s.cfg.Load() }

// SetAddresses replaces the addresses and names in the configuration of a running gateway by those of c: the fields from
// Gateway4 to FQDN except the booleans. The other fields of c are ignored. Each family must have a gateway address if and only
// if it had one before; otherwise nothing changes and an error is returned. Existing connections are not affected.
func (s *Stack) SetAddresses(c Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.config()
	if old.Gateway4.IsValid() != c.Gateway4.IsValid() || old.Gateway6.IsValid() != c.Gateway6.IsValid() {
		return errors.New("stack: an address family cannot be turned on or off while the gateway runs")
	}
	now := *old
	now.Gateway4, now.Gateway6, now.Subnet4, now.Subnet6 = c.Gateway4, c.Gateway6, c.Subnet4, c.Subnet6
	now.Guest4, now.Guest6, now.DNS, now.Local, now.Guests, now.SearchDomains, now.Hostname, now.FQDN = c.Guest4, c.Guest6, c.DNS, c.Local, c.Guests, c.SearchDomains, c.Hostname, c.FQDN
	s.cfg.Store(&now)
	if s.closed || !now.Gateway6.IsValid() || now.NoRA {
		return nil
	}
	retired := old.Subnet6
	if retired == now.Subnet6 {
		retired = netip.Prefix{}
	}
	for _, p := range *s.ports.Load() {
		s.advertise(p, allNodes, retired)
	}
	return nil
}

// MAC returns the gateway's link address.
func (s *Stack) MAC() net.HardwareAddr { return append(net.HardwareAddr(nil), s.mac[:]...) }

// AddPort attaches the device of the endpoint ep and starts reading from it. guestMAC is the guest's link address, to which frames are sent until
// the guest uses another one (see learn); if it is nil, frames are broadcast until the guest has sent one. onEnd, which may be
// nil, is called once with the final error if the device ends other than by Close; it must not call Close. The stack takes dev
// over, except if it is closed and returns tap.ErrClosed.
func (s *Stack) AddPort(ep flow.Endpoint, dev tap.Device, guestMAC net.HardwareAddr, onEnd func(error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return tap.ErrClosed
	}
	p := newPort(s, ep, dev, guestMAC)
	list := append(append([]*port(nil), *s.ports.Load()...), p)
	s.ports.Store(&list)
	s.wg.Go(func() {
		err := p.receiveLoop()
		s.removePort(p)
		select {
		case <-s.done:
		default:
			if onEnd != nil {
				onEnd(err)
			}
		}
	})
	if s.config().Gateway6.IsValid() && !s.config().NoRA {
		s.wg.Go(func() { s.advertiseLoop(p) })
	}
	return nil
}

func (s *Stack) removePort(p *port) {
	s.mu.Lock()
	var list []*port
	for _, q := range *s.ports.Load() {
		if q != p {
			list = append(list, q)
		}
	}
	s.ports.Store(&list)
	s.mu.Unlock()
	p.close()
}

// portFor returns the port behind which addr is, or nil. A network with one port needs no search.
func (s *Stack) portFor(addr netip.Addr) *port {
	ports := *s.ports.Load()
	if len(ports) == 1 {
		return ports[0]
	}
	for _, p := range ports {
		if p.owns(addr) {
			return p
		}
	}
	return nil
}

// Close resets every connection, closes the devices and waits for every goroutine of the stack.
func (s *Stack) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	close(s.done)
	s.buffers.close()
	ports := *s.ports.Load()
	s.mu.Unlock()
	s.abortAll() // before the devices are closed, so that the guest receives the resets
	for _, p := range ports {
		p.close()
	}
	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	for { // an unfinished handshake may still register an endpoint
		select {
		case <-ended:
			s.ns.Destroy()
			return
		case <-time.After(closePace):
			s.abortAll()
		}
	}
}

func (s *Stack) abortAll() {
	for _, e := range s.ns.RegisteredEndpoints() {
		e.Abort()
	}
}

// enter makes Close wait until the caller has called s.wg.Done. It returns false, without that, if the stack is closed.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Add(1)
	}
	return !s.closed
}

// isGateway reports whether a is an address of the gateway itself.
func (s *Stack) isGateway(a netip.Addr) bool {
	return a == s.config().Gateway4 || a == s.config().Gateway6 || a == s.ll6
}

// answersPing reports whether the gateway answers echo requests to a.
func (s *Stack) answersPing(a netip.Addr) bool {
	return a == s.ll6 || slices.Contains(s.config().Local, a) || !s.config().HostAddresses && s.isGateway(a)
}

// isNeighbour reports whether ARP and neighbour discovery for a are answered with the gateway's link address.
func (s *Stack) isNeighbour(a netip.Addr) bool {
	if s.isGateway(a) || slices.Contains(s.config().Local, a) {
		return true
	}
	return s.config().HostAddresses && !slices.Contains(s.config().Guests, a) && !a.IsUnspecified() && !a.IsMulticast()
}

// linkLocal returns the modified EUI-64 link-local address of mac (RFC 4291, appendix A).
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe,
		13: mac[3], 14: mac[4], 15: mac[5]})
}

func toNetip(a tcpip.Address) netip.Addr {
	b, _ := netip.AddrFromSlice(a.AsSlice())
	return b
}

func fromNetip(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }
