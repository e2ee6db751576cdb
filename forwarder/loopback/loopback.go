package loopback

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/rawsock"
	"rootlessnet/splice"
)

// Relay carries connections and datagrams between two namespaces that no route connects: from a socket bound to the
// loopback of one to the loopback of the other, on the ports it is given and on no others. No policy is consulted: the
// ports were named by the user.
//
//	client -> [::]:PORT on lo, one namespace -- Relay -- 127.0.0.1:TO or [::1]:TO, the other -> server
//
// The server's family is the client's, or the other family where nothing listens on the client's. Everything is done by one event
// loop, which costs a listening port no more than its descriptor. Methods may be called from any goroutine.
type Relay struct {
	f       *forwarder.Forwarder
	ep      flow.Endpoint
	loop    *splice.Loop
	clients *inbound.Dialler
	pool    Pool // nil: servers are in our own namespace

	buf [maxDatagram]byte // of the handler run

	mu      lockrank.Mutex
	closed  bool                // guarded by mu
	ports   map[*Port]struct{}  // guarded by mu
	waits   map[*wait]struct{}  // guarded by mu
	joined  map[*joint]struct{} // guarded by mu
	flows   int                 // of all UDP ports; guarded by mu
	sweeper *time.Timer         // not nil while there are flows; guarded by mu
	stats   Stats               // except the two gauges; guarded by mu
}

// Stats are counters.
type Stats struct {
	Active, Flows    int    // TCP connections and UDP flows at this moment
	Connections      uint64 // TCP, that reached a server
	Refused          uint64 // TCP, that did not
	Datagrams        uint64 // both directions
	DroppedDatagrams uint64
}

// Port is one port of a Relay.
type Port struct {
	l     *Relay
	fd    int
	to    uint16
	udp   bool
	ipv6  bool // AF_INET6; unless IPV6_V6ONLY is set it receives IPv4 as well
	token int32

	paused bool                   // guarded by l.mu
	closed bool                   // guarded by l.mu
	flows  map[clientKey]*udpFlow // of UDP; guarded by l.mu
}

// Pool is a pool of sockets of the namespace where the servers are. A Relay closes it.
type Pool interface {
	// Get and GetUDP never wait; an error means that the pool is empty at the moment.
	Get(ipv6, behind bool) (fd int, err error)
	GetUDP(ipv6 bool) (fd int, err error)
	Close()
}

const (
	// acceptMost bounds the clients accepted in one handler run.
	acceptMost = 64
	// descriptors of a connection: the client's socket and the server's.
	descriptors = 2
)

// New starts a Relay without ports for the endpoint ep. pool is nil when servers are in the namespace of this process and
// clients in another: the flows are then outbound ones.
func New(f *forwarder.Forwarder, ep flow.Endpoint, pool Pool) (*Relay, error) {
	loop, err := splice.NewLoop(f.Log, f.Spin)
	if err != nil {
		return nil, err
	}
	l := &Relay{f: f, ep: ep, loop: loop, clients: inbound.NewDialler(loop), pool: pool, ports: map[*Port]struct{}{},
		waits: map[*wait]struct{}{}, joined: map[*joint]struct{}{}}
	l.mu.SetRank(lockrank.LoopbackRelay)
	return l, nil
}

// Listen forwards the clients of f, which it takes over, to a port of the loopback where the servers are. f is a listening
// TCP socket or a bound UDP one, non-blocking, of one family or for both.
func (l *Relay) Listen(f *os.File, to uint16) (*Port, error) {
	fd, err := rawsock.TakeFD(f)
	if err != nil {
		return nil, err
	}
	p := &Port{l: l, fd: fd, to: to}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil {
		var domain int
		domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		p.ipv6 = domain == unix.AF_INET6
	}
	if p.udp = kind == unix.SOCK_DGRAM; p.udp && err == nil {
		p.flows = map[clientKey]*udpFlow{}
		err = p.requestDestinations()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && l.closed {
		err = net.ErrClosed
	}
	if err == nil {
		p.token, err = l.loop.Watch(fd, unix.EPOLLIN, p)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	l.ports[p] = struct{}{}
	return p, nil
}

// Close closes the port. Connections go on, as after a listener was closed; datagrams do not.
func (p *Port) Close() {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	p.closeLocked()
}

func (p *Port) closeLocked() {
	if p.closed {
		return
	}
	p.closed = true
	delete(p.l.ports, p)
	p.l.loop.Unwatch(p.fd, p.token)
	unix.Close(p.fd)
	for _, f := range p.flows {
		f.endLocked()
	}
}

// Close ends everything and waits for the loop.
func (l *Relay) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	for p := range l.ports {
		p.closeLocked()
	}
	for w := range l.waits {
		w.timer.Stop()
		delete(l.waits, w)
		l.resetClient(w.client)
	}
	if l.sweeper != nil {
		l.sweeper.Stop()
	}
	l.mu.Unlock()
	for range l.clients.Close() {
		l.give(descriptors)
	}
	l.loop.Close() // calls the ends of pairs, which take mu
	if l.pool != nil {
		l.pool.Close()
	}
}

// Stats reads the counters.
func (l *Relay) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Active, s.Flows = len(l.joined), l.flows
	return s
}

func (l *Relay) give(n int) { l.f.Budget.Give(fdbudget.Relay, n) }

// resetClient resets a client and returns its descriptors to the budget.
func (l *Relay) resetClient(client int) {
	rawsock.Reset(client)
	l.give(descriptors)
}

// refuse resets a client that reached no server. mu is held.
func (l *Relay) refuse(client int) {
	l.stats.Refused++
	l.resetClient(client)
}

// Ready is called by the loop when a client or a datagram has arrived.
func (p *Port) Ready(uint32) {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	if p.closed {
		return
	}
	if p.udp {
		p.receiveLocked()
		return
	}
	for range acceptMost {
		if !p.l.f.Budget.Take(fdbudget.Relay, descriptors) {
			p.pauseLocked()
			return
		}
		client, from, err := rawsock.Accept(p.fd)
		if err != nil {
			p.l.give(descriptors)
			if err != unix.EAGAIN {
				p.pauseLocked()
			}
			return
		}
		p.l.serveLocked(client, from, p.to, poolTries)
	}
}

// pauseLocked leaves the clients in the backlog for a while: a listener with something in it is ready all the time.
func (p *Port) pauseLocked() {
	if p.paused {
		return
	}
	p.paused = true
	_ = p.l.loop.Rearm(p.fd, 0, p.token)
	time.AfterFunc(inbound.Pause, func() {
		p.l.mu.Lock()
		defer p.l.mu.Unlock()
		p.paused = false
		if !p.closed {
			_ = p.l.loop.Rearm(p.fd, unix.EPOLLIN, p.token)
		}
	})
}
