package stack

import (
	"errors"
	"fmt"
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

	// maxInFlightSYN bounds connection attempts that wait for the host's answer. A peer that allows 128 lets a few
	// black-holed destinations stop all TCP; each attempt costs a goroutine, a segment and a socket, about 10 KiB.
	maxInFlightSYN = 8192

	// The buffers netstack may use towards the guest, bytes. The link has no latency to speak of, so a megabyte
	// keeps it busy, and a connection nobody reads holds no more. A receive buffer that is read as fast as it fills
	// grows (ModerateReceive), up to the maximum; the advertised window is half of it. What lies in a larger one is not in
	// the cache any more when it is read (bench/scheduler.md).
	tcpReceiveBuffer    = 1 << 20
	tcpReceiveBufferMax = 4 << 20
	tcpSendBuffer       = 1 << 20

	// timeWait: with a forwarder no listener exists that could reuse a 4-tuple in TIME_WAIT, so a guest that
	// reconnects from the same port would stall until it expires. The link cannot reorder, so none is needed.
	timeWait = time.Duration(0)

	// closePace is how often Close aborts what handshakes under way have added.
	closePace = 5 * time.Millisecond
)

// Config describes a gateway. After New it is changed by SetAddresses only.
type Config struct {
	// Gateway4 and Gateway6 are the gateway's own addresses; an invalid address turns the family off.
	Gateway4, Gateway6 netip.Addr
	// Subnet4 and Subnet6 are the prefixes on the link. Subnet6 is announced by RA.
	Subnet4, Subnet6 netip.Prefix
	// Guest4 is what the DHCPv4 server hands out; invalid: it stays silent.
	Guest4 netip.Addr
	// Guest6 is what the DHCPv6 server hands out; invalid: it stays silent.
	Guest6 netip.Addr
	// DNS is announced by DHCP and RA (RDNSS).
	DNS []netip.Addr
	// Local are the addresses that answer ARP, neighbour discovery and ping besides the gateway's.
	Local []netip.Addr
	// HostAddresses says that the guest bears addresses of the host's networks: we answer ARP and neighbour discovery
	// for every address but Guests, and a gateway's address answers ping only when it is among Local.
	HostAddresses bool
	// Guests are the guest's own addresses; needed with HostAddresses only.
	Guests []netip.Addr
	// NoDHCP and NoRA keep silent where a guest asks for its configuration, and unasked.
	NoDHCP, NoRA bool
	// DHCPv6 has a guest that asks for it configured by DHCPv6, and RAs say so.
	DHCPv6 bool
	// NoNDP answers no neighbour or router solicitation.
	NoNDP bool
	// SearchDomains go into DHCP answers and RAs.
	SearchDomains []string
	// Hostname goes into DHCPv4 answers, and FQDN into those of both.
	Hostname, FQDN string
	// MAC is the gateway's link address; nil means one derived from Gateway4.
	MAC net.HardwareAddr
	// MTU of the link in bytes without the Ethernet header.
	MTU int
	// CSum, TSO are what every device of this network can do (tap.Info); netstack fixes them for its one NIC.
	CSum, TSO bool
	// Handler receives what the guest starts. It may be set once more by SetHandler before the first AddPort.
	Handler Handler
	// Logger; nil discards.
	Logger *slog.Logger
}

// Stack is the gateway of one network: netstack for TCP, own code for everything else.
// All methods may be called from any goroutine.
type Stack struct {
	cfg        atomic.Pointer[Config] // see config
	log        *slog.Logger
	ns         *gstack.Stack
	link       *link
	tcp        *tcp.Forwarder
	syns       synTable
	held       atomic.Int32 // see hold
	handler    Handler
	synHandler SYNHandler
	mac        [6]byte
	ll6        netip.Addr // the gateway's link-local address, the source of RAs
	stats      counters
	ports      atomic.Pointer[[]*port]
	ipID       atomic.Uint32

	mu     sync.Mutex // guards closed and writes to ports
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
	s := &Stack{log: cfg.Logger, handler: cfg.Handler, done: make(chan struct{})}
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
	s.syns.m = make(map[gstack.TransportEndpointID]synInfo)
	s.ports.Store(&[]*port{})

	var nets []gstack.NetworkProtocolFactory
	var routes []tcpip.Route
	if cfg.Gateway4.IsValid() {
		nets = append(nets, ipv4.NewProtocol)
		routes = append(routes, tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nicID})
	}
	if cfg.Gateway6.IsValid() {
		// Neighbour and router discovery are answered by this package: netstack's own are all off.
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
	s.tcp = tcp.NewForwarder(s.ns, tcpReceiveBuffer/2, maxInFlightSYN, s.handleTCP)
	s.ns.SetTransportProtocolHandler(tcp.ProtocolNumber, s.deliverSYN)
	s.ns.SetTransportProtocolHandler(udp.ProtocolNumber, s.deliverReassembledUDP)
	s.ns.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.deliverReassembledICMP)
	s.ns.SetTransportProtocolHandler(icmp.ProtocolNumber6, s.deliverReassembledICMP)
	return s, nil
}

// setUp makes netstack's one NIC.
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
	// Promiscuous: a connection to any address ends here. Spoofing: an endpoint may carry a client's own address.
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
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: tcpReceiveBuffer, Max: tcpReceiveBufferMax}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: tcpSendBuffer, Max: 2 * tcpSendBuffer}
	tw := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &rcv, &snd, &tw} {
		if err := s.ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("stack: TCP option %T: %v", o, err)
		}
	}
	return nil
}

// SetHandler sets who receives what guests start. It must be called before the first AddPort.
func (s *Stack) SetHandler(h Handler) { s.handler = h }

// config is what is true now. It is not changed in place.
func (s *Stack) config() *Config { return s.cfg.Load() }

// SetAddresses takes the addresses and names of c, that is everything from Gateway4 to FQDN but for the switches, while the gateway runs; the rest of
// c is ignored. A family that was off stays off, and one that was on has to have a gateway. What is connected stays so.
func (s *Stack) SetAddresses(c Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.config()
	if old.Gateway4.IsValid() != c.Gateway4.IsValid() || old.Gateway6.IsValid() != c.Gateway6.IsValid() {
		return errors.New("stack: a family cannot be turned on or off")
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

// MAC is the gateway's link address.
func (s *Stack) MAC() net.HardwareAddr { return append(net.HardwareAddr(nil), s.mac[:]...) }

// AddPort attaches the device of an endpoint and starts reading it. guestMAC is where frames go until the guest is heard from another
// address; nil means broadcast until then. onEnd, when not nil, is called once when the device has ended by itself, not
// by Close; it must not call Close. The stack owns dev from here on, unless it is closed and AddPort fails.
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

// portFor finds the device behind which addr lives. A private network has one port and no search.
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
	ports := *s.ports.Load()
	s.mu.Unlock()
	s.abortAll() // while there are devices: the guest gets its resets
	for _, p := range ports {
		p.close()
	}
	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	for { // a handshake may register its endpoint only now
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

// enter keeps Close from finishing until the caller has called s.wg.Done; false when the stack is closed already.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Add(1)
	}
	return !s.closed
}

// isGateway says whether a is an address of the gateway itself.
func (s *Stack) isGateway(a netip.Addr) bool {
	return a == s.config().Gateway4 || a == s.config().Gateway6 || a == s.ll6
}

// answersPing says whether an echo request to a is answered here.
func (s *Stack) answersPing(a netip.Addr) bool {
	return a == s.ll6 || slices.Contains(s.config().Local, a) || !s.config().HostAddresses && s.isGateway(a)
}

// isNeighbour says whether the guest finds a at our hardware address.
func (s *Stack) isNeighbour(a netip.Addr) bool {
	if s.isGateway(a) || slices.Contains(s.config().Local, a) {
		return true
	}
	return s.config().HostAddresses && !slices.Contains(s.config().Guests, a) && !a.IsUnspecified() && !a.IsMulticast()
}

// linkLocal is the modified EUI-64 link-local address of mac (RFC 4291, appendix A).
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe,
		13: mac[3], 14: mac[4], 15: mac[5]})
}

func toNetip(a tcpip.Address) netip.Addr {
	b, _ := netip.AddrFromSlice(a.AsSlice())
	return b
}

func fromNetip(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }
