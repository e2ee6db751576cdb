package forwarder

import (
	"net"
	"net/netip"

	"rootlessnet/flow"
	"rootlessnet/internal/breaker"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/spin"
)

// clientDescriptors is what a datapath may take for a client at most: both sockets. A port accepts only while so many are
// free, because the client's socket is open already when a datapath is called.
const clientDescriptors = 2

// Target is where the clients of a published port are forwarded to: a port of an endpoint's guest.
type Target struct {
	Endpoint flow.Endpoint
	// Addr is the port, and the address where that is not the guest's own but one that the guest routes to; the zero
	// address means the guest's own (Endpoint.Asked).
	Addr netip.AddrPort
}

// ClientServer is a datapath that connects the clients of published ports with the guest.
type ClientServer interface {
	// Serve connects the client and takes it over. taken is false where this datapath cannot serve the client; then
	// Serve of the next datapath is called. Otherwise did is the result of the handler run. Serve must not block.
	Serve(c *Client) (did spin.Result, taken bool)
}

// Client is an accepted connection to a published port.
type Client struct {
	FD   int // non-blocking
	Addr netip.AddrPort
	Port *PublishedTCP

	next int // the index of the next datapath to call
}

// PassOn passes the client to the datapaths after the one that has it. The last one of a port takes every client.
func (c *Client) PassOn() spin.Result {
	for c.next < len(c.Port.servers) {
		s := c.Port.servers[c.next]
		c.next++
		if did, taken := s.Serve(c); taken {
			return did
		}
	}
	return spin.Idle
}

// PublishedTCP is one listener of the host whose clients are connected to a port of a guest.
type PublishedTCP struct {
	f       *Forwarder
	l       *inbound.Listener
	addr    netip.AddrPort
	to      Target
	servers []ClientServer

	// Splice is the splice path's circuit breaker for this port: where the splice path does not reach the server and
	// the stack path does, new clients go to the stack path at once.
	Splice *breaker.Breaker
}

// PublishTCP serves l's clients from the target by the first of the given datapaths that takes them, and takes l over. The
// last of servers must take every client.
func (f *Forwarder) PublishTCP(l *net.TCPListener, to Target, servers ...ClientServer) (*PublishedTCP, error) {
	p := &PublishedTCP{f: f, addr: l.Addr().(*net.TCPAddr).AddrPort(), to: to, servers: servers,
		Splice: breaker.New(SpliceFailures, SplicePause)}
	var err error
	if p.l, err = inbound.Listen(f.Spin, l, false, TuneHost, (*publishedHandler)(p)); err != nil {
		return nil, err
	}
	return p, nil
}

// Addr is the address listened on.
func (p *PublishedTCP) Addr() netip.AddrPort { return p.addr }

// Target is where clients are forwarded to.
func (p *PublishedTCP) Target() Target { return p.to }

// Close stops listening. Existing connections stay open, as with Docker when a container's port mapping is removed.
func (p *PublishedTCP) Close() { p.l.Close() }

// publishedHandler are the methods of a PublishedTCP that its listener calls.
type publishedHandler PublishedTCP

func (p *publishedHandler) Ready() bool {
	return p.f.TCP.Waiting.Load() < MaxAttempts && p.f.Budget.Free(fdbudget.Stack) >= clientDescriptors
}

func (p *publishedHandler) AcceptFailed(error) { p.f.TCP.AcceptErrors.Add(1) }

func (p *publishedHandler) Serve(fd int, client netip.AddrPort) spin.Result {
	c := &Client{FD: fd, Addr: client, Port: (*PublishedTCP)(p)}
	return c.PassOn()
}
