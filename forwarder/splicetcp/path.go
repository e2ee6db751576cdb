package splicetcp

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/breaker"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/lockrank"
	"rootlessnet/internal/rawsock"
	"rootlessnet/splice"
	"rootlessnet/stack"
)

// Inside is what the splice path needs of the guest's namespace. The Path owns all of it.
type Inside struct {
	// Endpoint is the endpoint whose guest has the namespace.
	Endpoint flow.Endpoint
	// Packets is an AF_PACKET socket: an Ethernet frame written to it, without addresses, arrives on the namespace's
	// loopback interface, and TPROXY redirects it to a listener.
	Packets *os.File
	// Loopback is the index of that interface.
	Loopback int
	// Listeners, non-blocking, one for each family, accept connections to any address.
	Listeners []*os.File
	// Pool has sockets that may have any address, and connect to the guest with it.
	Pool Pool
	// Forward prepares the namespace for TCP that it forwards, such as that of containers on a bridge in it. It is
	// called once, when it is needed, and may block. nil means that forwarded TCP takes the stack path.
	Forward func() error
}

// Pool is a pool of transparent TCP sockets of the guest's namespace.
type Pool interface {
	// Get never waits; an error means that the pool is empty at the moment. behind is set for a peer that the namespace
	// routes to; otherwise the peer is the namespace itself.
	Get(ipv6, behind bool) (fd int, err error)
	Close()
}

// Path is the splice path: it joins the guest's connections with the host's by splice(2). Both ends are sockets of the
// kernel, and do not pass the userspace stack. The stack path takes every connection that the Path declines.
//
//	out: SYN from the link -> decide -> dial -> re-inject the SYN on the guest's lo -> accept -> join
//	in:  accept -> pooled socket with the client's address -> connect -> join
//
// doc.go has the states and the lock order.
type Path struct {
	f       *forwarder.Forwarder
	in      Inside
	loop    *splice.Loop
	clients *inbound.Dialler // clients of published ports that the guest has not answered yet

	packets int // descriptor of in.Packets
	listen  []listener
	to      unix.RawSockaddrLinklayer // the guest's lo

	// using is read-locked while code outside of the loop's handler runs uses the descriptors. Close takes it before it
	// closes them.
	using sync.RWMutex

	own       *breaker.Breaker // for the guest's own outbound connections
	forwarded *breaker.Breaker // for those that it forwards

	mu         lockrank.Mutex
	closed     bool                    // guarded by mu
	requests   map[stack.Flow]*request // guarded by mu
	reinjected int                     // requests that are not dialling any more; guarded by mu
	pausing    bool                    // accept found no descriptor, and will be tried again; guarded by mu
	joined     map[*joint]struct{}     // guarded by mu
	sweeping   *time.Timer             // not nil while there is something to sweep; guarded by mu

	forwarding forwardState              // guarded by mu
	waiting    map[stack.Flow]*stack.SYN // until the namespace is ready to forward; guarded by mu

	endedToHost, endedToGuest uint64 // bytes of the connections that have ended; guarded by mu
	reinjectFailed, unmatched uint64 // guarded by mu
	givenUp                   uint64 // guarded by mu
}

var (
	_ stack.SYNHandler       = (*Path)(nil)
	_ forwarder.ClientServer = (*Path)(nil)
)

// descriptors of a connection: the host's socket and the guest's.
const descriptors = 2

// sweepInterval is how often requests are checked for a timeout.
const sweepInterval = 5 * time.Second

// New opens the splice path. On an error nothing of in is left open.
func New(f *forwarder.Forwarder, in Inside) (p *Path, err error) {
	p = &Path{f: f, in: in, packets: -1, requests: map[stack.Flow]*request{}, waiting: map[stack.Flow]*stack.SYN{}, joined: map[*joint]struct{}{},
		own:       breaker.New(forwarder.SpliceFailures, forwarder.SplicePause),
		forwarded: breaker.New(forwarder.SpliceFailures, forwarder.SplicePause),
		to:        unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(in.Loopback)}}
	p.mu.SetRank(lockrank.SplicePath)
	defer func() {
		if err != nil {
			if p.loop != nil {
				p.loop.Close()
			}
			p.closeFiles()
		}
	}()
	if p.packets, err = rawsock.TakeFD(in.Packets); err != nil {
		return nil, err
	}
	if p.loop, err = splice.NewLoop(f.Log, f.Spin); err != nil {
		return nil, err
	}
	p.clients = inbound.NewDialler(p.loop)
	for _, l := range in.Listeners {
		fd, err := rawsock.TakeFD(l)
		if err != nil {
			return nil, err
		}
		p.listen = append(p.listen, listener{p: p, fd: fd, ipv6: rawsock.LocalAddr(fd).Addr().Is6()})
	}
	for i := range p.listen {
		l := &p.listen[i]
		// EPOLLONESHOT: the loop reports a connection only after awaitLocked, because nearly always the connection is in the
		// backlog already when HandleSYN calls accept.
		if l.token, err = p.loop.Watch(l.fd, unix.EPOLLONESHOT, l); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close ends everything. Serve must not be running any more; HandleSYN may, and then drops every SYN.
func (p *Path) Close() {
	p.mu.Lock()
	p.closed = true
	if p.sweeping != nil {
		p.sweeping.Stop()
	}
	for _, q := range p.requests {
		p.dropLocked(q)
	}
	p.mu.Unlock()
	for range p.clients.Close() {
		p.give()
	}
	p.loop.Close()
	p.using.Lock()
	defer p.using.Unlock()
	p.closeFiles()
}

func (p *Path) closeFiles() {
	_ = p.in.Packets.Close() // this and the listeners: where they were not taken yet
	for _, l := range p.in.Listeners {
		_ = l.Close()
	}
	if p.packets >= 0 {
		_ = rawsock.CloseLater(p.packets, func() error { return unix.Close(p.packets) })
	}
	for i := range p.listen {
		unix.Close(p.listen[i].fd)
	}
	p.in.Pool.Close()
}

// Stats are the Path's own counters; what it shares with the stack path is in forwarder.TCPCounters.
type Stats struct {
	Active                    int    // connections joined at this moment
	BytesToHost, BytesToGuest uint64 // payload since the start; no frame of the link has carried it
	ReinjectFailed            uint64 // SYNs re-injected on lo that the guest's kernel did not answer there; the stack path got them
	Unmatched                 uint64 // connections to the listeners that belong to no request; reset
	GivenUp                   uint64 // connects that the guest gave up while the host's connection stood; reset there
}

// Stats reads the counters.
func (p *Path) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Active: len(p.joined), BytesToHost: p.endedToHost, BytesToGuest: p.endedToGuest, ReinjectFailed: p.reinjectFailed, Unmatched: p.unmatched, GivenUp: p.givenUp}
	for j := range p.joined {
		h, g := j.pair.Moved()
		s.BytesToHost, s.BytesToGuest = s.BytesToHost+h, s.BytesToGuest+g
	}
	return s
}

// take reserves the descriptors of one connection; give returns them when it has ended or was not joined.
func (p *Path) take() bool { return p.f.Budget.Take(fdbudget.Splice, descriptors) }
func (p *Path) give()      { p.f.Budget.Give(fdbudget.Splice, descriptors) }

// sweepLater makes sure that sweep runs. mu is held.
func (p *Path) sweepLater() {
	if p.sweeping == nil && !p.closed {
		p.sweeping = time.AfterFunc(sweepInterval, p.sweep)
	}
}

// sweep drops the requests that were not answered in time.
func (p *Path) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweeping = nil
	if p.closed {
		return
	}
	now := time.Now()
	for _, q := range p.requests {
		switch age := now.Sub(q.since); {
		case q.state != dialling && age > forwarder.GuestTimeout:
			p.reinjectFailedLocked(q)
		case q.state == dialling && age > forwarder.DialTimeout:
			p.dropLocked(q)
			p.f.TCP.DialErrors.Add(1)
		}
	}
	if len(p.requests) > 0 {
		p.sweepLater()
	}
}
