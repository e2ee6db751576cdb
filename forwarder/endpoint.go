package forwarder

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"rootlessnet/flow"
	"rootlessnet/internal/clientaddr"
	"rootlessnet/internal/rawsock"
	"rootlessnet/policy"
)

// dnsPort is the port of DNS servers (RFC 1035 4.2).
const dnsPort = 53

// Judge is the part of a policy that decisions need. It must not block and may be called from any goroutine.
type Judge interface {
	Judge(proto policy.Proto, src, dst netip.AddrPort) policy.Verdict
}

var (
	_ Judge = (*policy.Policy)(nil)
	_ Judge = (*policy.Live)(nil)
)

// Resolver answers the guest's DNS queries to the addresses of ResolverAddrs.
type Resolver interface {
	// ServeTCP serves one connection until it ends. The caller closes the connection.
	ServeTCP(net.Conn)
	// ServeUDP answers one query. It must not block nor keep query, and may call reply at most once, from any goroutine.
	ServeUDP(query []byte, reply func(answer []byte))
}

// Addresses are the addresses of an endpoint that may change while it is in use.
type Addresses struct {
	// Gateway4, Gateway6 are the gateway's and Guest4, Guest6 the guest's; an invalid one disables the family.
	Gateway4, Gateway6, Guest4, Guest6 netip.Addr
	// Guests are all addresses of the guest's link. Packets with one of them as their source cannot come from outside: a
	// client of a published port that has one appears as the gateway. Guest4 and Guest6 need not be repeated.
	Guests []netip.Addr
	// Source4 and Source6 are what the host's sockets are bound to, except those to the host's loopback; the zero value
	// leaves the choice to the host's routes.
	Source4, Source6 netip.Addr
	// Interface4 and Interface6 are the indexes of the interfaces by which packets of the family leave the host, except
	// those to its loopback; 0 leaves the choice to the host's routes.
	Interface4, Interface6 int
	// Host4 and Host6 are the host's own addresses that the gateway stands for (policy.Config). What is sent there does not leave
	// the host.
	Host4, Host6 netip.Addr
}

// Egress is how packets leave the host. The zero value leaves that to the host's routes.
type Egress struct {
	Addr  netip.Addr // source address
	Index int        // of an interface
}

// EgressTo is how packets to dst leave the host. What is sent to the host itself stays there.
func (a *Addresses) EgressTo(dst netip.Addr) Egress {
	switch {
	case dst.IsLoopback() || dst == a.Host4 || dst == a.Host6:
		return Egress{}
	case dst.Is4():
		return Egress{a.Source4, a.Interface4}
	}
	return Egress{a.Source6, a.Interface6}
}

// Guest is the guest's address of the family of a.
func (a *Addresses) Guest(of netip.Addr) netip.Addr {
	if of.Is4() {
		return a.Guest4
	}
	return a.Guest6
}

// EndpointConfig describes one attachment of a guest.
type EndpointConfig struct {
	ID flow.Endpoint
	// Policy judges what the guest opens. Required.
	Policy Judge
	// Resolver answers DNS at ResolverAddrs; nil: port 53 is judged like any other.
	Resolver Resolver
	// ResolverAddrs are the addresses that answer DNS; nil means the gateway's.
	ResolverAddrs []netip.Addr
	// Subnets are the prefixes of the guest's link. The guest looks for their addresses on the link, so a client of a
	// published port that has one of them appears as the gateway.
	Subnets []netip.Prefix
	// FullCone lets datagrams of any remote in to a source of the guest that has sent any (endpoint-independent filtering, RFC
	// 4787 5), as far as the guest might send there. Otherwise only addresses that it has sent to may (address-dependent
	// filtering).
	FullCone bool
	// Addresses may be replaced by SetAddresses.
	Addresses Addresses
}

// Endpoint is one attachment of a guest. Safe for concurrent use.
type Endpoint struct {
	cfg EndpointConfig
	now atomic.Pointer[endpointAddresses]
}

// endpointAddresses are an endpoint's addresses, and the clientaddr.Network made of them.
type endpointAddresses struct {
	Addresses
	clients clientaddr.Network
	several bool // Guests has more than one address of a family
}

func newEndpoint(cfg EndpointConfig) *Endpoint {
	e := &Endpoint{cfg: cfg}
	e.SetAddresses(cfg.Addresses)
	return e
}

// FullCone is that of the configuration.
func (e *Endpoint) FullCone() bool { return e.cfg.FullCone }

// Addresses are those in force. They must not be changed.
func (e *Endpoint) Addresses() *Addresses { return &e.now.Load().Addresses }

// SetAddresses replaces the addresses for flows that begin from now on.
func (e *Endpoint) SetAddresses(a Addresses) {
	now := &endpointAddresses{Addresses: a, clients: clientaddr.Network{Gateway4: a.Gateway4, Gateway6: a.Gateway6, Own: a.Guests, Subnets: e.cfg.Subnets}}
	var n4, n6 int
	for _, g := range a.Guests {
		if g.Is4() {
			n4++
		} else {
			n6++
		}
	}
	now.several = n4 > 1 || n6 > 1
	e.now.Store(now)
}

// Asked is the guest's address to which a client of a published port is forwarded, which the socket fd was accepted from: the one
// that the client has asked, if the guest has that address of the host as well, else the guest's own of the client's family.
func (e *Endpoint) Asked(fd int, client netip.Addr) netip.Addr {
	now := e.now.Load()
	if now.several { // otherwise it is the same address
		if local := rawsock.LocalAddr(fd).Addr(); slices.Contains(now.Addresses.Guests, local) {
			return local
		}
	}
	return now.Addresses.Guest(client)
}

// ClientVisible reports whether a server of the guest at the address server may see client under its own address.
func (e *Endpoint) ClientVisible(client, server netip.Addr) bool {
	return e.now.Load().clients.Visible(client, server)
}

// ClientSource is the address under which server sees client; see clientaddr.
func (e *Endpoint) ClientSource(client netip.AddrPort, server netip.Addr) netip.AddrPort {
	return e.now.Load().clients.Source(client, server)
}

// AnswersDNS reports whether queries to dst are for the resolver.
func (e *Endpoint) AnswersDNS(dst netip.AddrPort) bool {
	if e.cfg.Resolver == nil || dst.Port() != dnsPort {
		return false
	}
	if e.cfg.ResolverAddrs != nil {
		return slices.Contains(e.cfg.ResolverAddrs, dst.Addr())
	}
	a := e.Addresses()
	return dst.Addr() == a.Gateway4 || dst.Addr() == a.Gateway6
}
