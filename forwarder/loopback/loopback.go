package loopback

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/splice"
)

// Relay carries connections and datagrams between two namespaces that no route connects: from a socket bound to the
// loopback of one to the loopback of the other, on the ports it is given and on no others. No policy is asked: naming a
// port is the permission.
//
//	client -> [::]:PORT on lo, one namespace -- Relay -- 127.0.0.1:TO or [::1]:TO, the other -> server
//
// The server's family is the client's, or the other one where nothing listens on that. Everything is done by one event
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
	stats   Stats               // but for the two that are of now; guarded by mu
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

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// Pool is a pool of sockets of the namespace where the servers are. A Relay closes it.
type Pool interface {
	// Get and GetUDP never wait; an error means that the pool is empty at the moment.
	Get(ipv6, behind bool) (fd int, err error)
	GetUDP(ipv6 bool) (fd int, err error)
	Close()
}

const (
	// An empty pool is filled again within a millisecond, if the process that fills it gets the processor.
	poolRetry = 5 * time.Millisecond
	poolTries = 400

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

// resetClient resets a client whose descriptors are taken.
func (l *Relay) resetClient(client int) {
	rawsock.Reset(client)
	l.give(descriptors)
}

// refuse resets a client that reached no server. mu is held.
func (l *Relay) refuse(client int) {
	l.stats.Refused++
	l.resetClient(client)
}

// Ready is called by the loop when a client is there.
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

// Serve implements forwarder.ClientServer: it takes the clients of published ports that come by the host's loopback, for
// servers on the guest's own.
func (l *Relay) Serve(c *forwarder.Client) (spin.Result, bool) {
	to := c.Port.Target()
	if !c.Addr.Addr().IsLoopback() || to.Addr.Addr().IsValid() || to.Endpoint != l.ep {
		return spin.Idle, false
	}
	l.f.Budget.TakeAnyway(fdbudget.Relay, descriptors)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.resetClient(c.FD)
	} else {
		l.serveLocked(c.FD, c.Addr, to.Addr.Port(), poolTries)
	}
	return spin.Progress, true
}

// loopbacks are a port's two addresses, the client's family first.
func loopbacks(ipv6 bool, port uint16) (dst, alt netip.AddrPort) {
	dst, alt = netip.AddrPortFrom(loopback4, port), netip.AddrPortFrom(loopback6, port)
	if ipv6 {
		return alt, dst
	}
	return dst, alt
}

// serveLocked connects the client, now or when there is a socket for it.
func (l *Relay) serveLocked(client int, from netip.AddrPort, to uint16, tries int) {
	rawsock.NoDelay(client)
	dst, alt := loopbacks(from.Addr().Is6(), to)
	if l.dialLocked(client, from, dst, alt) {
		return
	}
	if tries == 0 {
		l.refuse(client)
		return
	}
	w := &wait{client: client}
	l.waits[w] = struct{}{}
	w.timer = time.AfterFunc(poolRetry, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, there := l.waits[w]; there {
			delete(l.waits, w)
			l.serveLocked(client, from, to, tries-1)
		}
	})
}

// wait is a client for which the pool had no socket.
type wait struct {
	client int
	timer  *time.Timer
}

// dialLocked connects to dst, and to alt where nothing listens on that. It is false, and the client still the caller's,
// when there is no socket for it at the moment.
func (l *Relay) dialLocked(client int, from, dst, alt netip.AddrPort) bool {
	for {
		fd, done, err := l.connect(dst)
		switch {
		case err == errPoolEmpty:
			return false
		case err == nil && done:
			l.joinLocked(client, fd, from, dst)
			return true
		case err == nil:
			if err = l.waitLocked(client, fd, from, dst, alt); err == nil {
				return true
			}
		}
		if !alt.IsValid() || forwarder.OutOfResources(err) {
			l.refuse(client)
			return true
		}
		dst, alt = alt, netip.AddrPort{}
	}
}

// waitLocked is for a connect that did not end at once: the server's backlog is full.
func (l *Relay) waitLocked(client, fd int, from, dst, alt netip.AddrPort) error {
	c := &inbound.Client{Socket: client}
	c.Connected = func(fd int, dst netip.AddrPort) {
		l.mu.Lock()
		defer l.mu.Unlock()
		forwarder.QueueErrors(fd, dst.Addr().Is4(), 0)
		l.joinLocked(client, fd, from, dst)
	}
	c.Failed = func(netip.AddrPort, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closed || !alt.IsValid() || !l.dialLocked(client, from, alt, netip.AddrPort{}) {
			l.refuse(client)
		}
	}
	return l.clients.Wait(c, fd, dst, 0)
}

// errPoolEmpty says that there is no socket at the moment.
var errPoolEmpty = errors.New("the pool of sockets is empty")

// connect begins a connection to a server.
func (l *Relay) connect(dst netip.AddrPort) (fd int, done bool, err error) {
	if l.pool == nil {
		return forwarder.StartDial(forwarder.Egress{}, dst, 0)
	}
	if fd, err = l.pool.Get(dst.Addr().Is6(), false); err != nil {
		return -1, false, errPoolEmpty
	}
	if done, err = rawsock.ConnectFrom(fd, netip.AddrPort{}, dst); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// joint is one joined connection.
type joint struct {
	flow.Entry
	pair *splice.Pair // the client's socket first
	in   bool         // the server is in the guest's namespace
}

// Counters implements flow.Carrier.
func (j *joint) Counters() flow.Counters {
	c := flow.Counters{State: flow.Established}
	if j.pair.HalfClosed() {
		c.State = flow.HalfClosed
	}
	toClient, toServer := j.pair.Moved()
	c.BytesToHost, c.BytesToGuest = toServer, toClient
	if j.in {
		c.BytesToHost, c.BytesToGuest = toClient, toServer
	}
	return c
}

// Kill implements flow.Carrier.
func (j *joint) Kill() { j.pair.Kill() }

func (l *Relay) joinLocked(client, server int, from, dst netip.AddrPort) {
	if l.closed {
		rawsock.Reset(server)
		l.resetClient(client)
		return
	}
	if rawsock.IsSelf(server, dst) { // nothing listens there: the kernel has chosen that very port for our own end
		rawsock.Reset(server)
		l.refuse(client)
		return
	}
	rawsock.NoDelay(server)
	j := &joint{Entry: l.entry(flow.TCP, from, rawsock.LocalAddr(client), dst), in: l.pool != nil}
	var err error
	j.pair, err = l.loop.Join(client, server, func() { l.ended(j) })
	if err != nil { // no memory, or closed
		rawsock.Reset(server)
		l.resetClient(client)
		return
	}
	l.joined[j] = struct{}{}
	l.f.Flows.Add(&j.Entry, j)
	l.stats.Connections++
}

// ended is called by the loop when a pair has ended.
func (l *Relay) ended(j *joint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.joined, j)
	l.f.Flows.Remove(&j.Entry, j.Counters())
	l.give(descriptors)
}

// entry describes a flow from a client that was sent to the address at.
func (l *Relay) entry(proto flow.Proto, from, at, server netip.AddrPort) flow.Entry {
	e := flow.Entry{Key: flow.Key{Endpoint: l.ep, Proto: proto, Src: from, Dst: at}, Datapath: flow.Loopback, Peer: server}
	if l.pool != nil {
		e.Direction, e.Key.Dst, e.Peer = flow.Inbound, server, from
	}
	return e
}
