package forwarder

import (
	"errors"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/splice"
)

// Loopback carries connections and datagrams between two namespaces that nobody could route: from a socket bound to the
// loopback of one to the loopback of the other, on the ports it is told and on no others. It knows no policy, for there is
// nothing to judge: to name a port is the permission.
//
//	client → [::]:PORT on lo, one namespace ── Loopback ── 127.0.0.1:TO or [::1]:TO, the other → server
//
// The server's family is the client's, or the other one where nobody listens on that. Everything is done by one event
// loop, which costs a listening port no more than its descriptor. Methods may be called from any goroutine.
type Loopback struct {
	log  *slog.Logger
	loop *splice.Loop
	mint LoopbackMint // nil: servers are in our own namespace
	most int          // connections; what is beyond waits in the backlog

	buf [maxLoopbackDatagram]byte // of the loop's turn

	mu      sync.Mutex
	closed  bool                       // guarded by mu
	ports   map[*LoopbackPort]struct{} // guarded by mu
	dials   map[*loopbackDial]struct{} // guarded by mu
	waits   map[*loopbackWait]struct{} // guarded by mu
	joined  map[*splice.Pair]struct{}  // guarded by mu
	flows   int                        // of all UDP ports; guarded by mu
	sweeper *time.Timer                // not nil while there are flows; guarded by mu
	stats   LoopbackStats              // but for the two that are of now; guarded by mu
}

// LoopbackStats are counters.
type LoopbackStats struct {
	Active, Flows    int    // TCP connections and UDP flows at this moment
	Connections      uint64 // TCP, that reached a server
	Refused          uint64 // TCP, that did not
	Datagrams        uint64 // both directions
	DroppedDatagrams uint64
}

// LoopbackPort is one port of a Loopback.
type LoopbackPort struct {
	l     *Loopback
	fd    int
	to    uint16
	udp   bool
	ipv6  bool // the socket's family; both are heard by such a one
	token int32

	paused bool                          // guarded by l.mu
	closed bool                          // guarded by l.mu
	flows  map[loopbackKey]*loopbackFlow // of UDP; guarded by l.mu
}

// loopbackDial is a connect that did not end at once: the server's backlog is full.
type loopbackDial struct {
	l      *Loopback
	client int
	fd     int
	dst    netip.AddrPort
	alt    netip.AddrPort // the zero value: was tried
	token  int32
}

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// LoopbackMint is a stock of sockets of the namespace where the servers are. A Loopback closes it.
type LoopbackMint interface {
	Mint
	GetUDP(ipv6 bool) (fd int, err error)
}

const (
	// A stock that is empty is filled again within a millisecond, if the other process has its turn.
	mintRetry = 5 * time.Millisecond
	mintTries = 400
)

// NewLoopback starts one without ports. mint is nil when servers are in the namespace of this process and clients in
// another. group is that of the Streams; it and log may be nil.
func NewLoopback(mint LoopbackMint, group *spin.Group, log *slog.Logger) (*Loopback, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	loop, err := splice.NewLoop(log, group)
	if err != nil {
		return nil, err
	}
	l := &Loopback{log: log, loop: loop, mint: mint, most: math.MaxInt, ports: map[*LoopbackPort]struct{}{}, dials: map[*loopbackDial]struct{}{},
		waits: map[*loopbackWait]struct{}{}, joined: map[*splice.Pair]struct{}{}}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil && lim.Cur < math.MaxInt32 {
		l.most = int(lim.Cur) / fileShare
	}
	return l, nil
}

// Listen leads the clients of f, which it takes over, to a port of the loopback where the servers are. f is
// a listening TCP socket or a bound UDP one, non-blocking, of one family or for both.
func (l *Loopback) Listen(f *os.File, to uint16) (*LoopbackPort, error) {
	fd, err := takeFD(f)
	if err != nil {
		return nil, err
	}
	p := &LoopbackPort{l: l, fd: fd, to: to}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil {
		var domain int
		domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		p.ipv6 = domain == unix.AF_INET6
	}
	if p.udp = kind == unix.SOCK_DGRAM; p.udp && err == nil {
		p.flows = map[loopbackKey]*loopbackFlow{}
		err = p.tellDestinations()
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
func (p *LoopbackPort) Close() {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	p.closeLocked()
}

func (p *LoopbackPort) closeLocked() {
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
func (l *Loopback) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	for p := range l.ports {
		p.closeLocked()
	}
	for d := range l.dials {
		d.endLocked()
		rawsock.Reset(d.fd)
		rawsock.Reset(d.client)
	}
	for w := range l.waits {
		w.timer.Stop()
		delete(l.waits, w)
		rawsock.Reset(w.client)
	}
	if l.sweeper != nil {
		l.sweeper.Stop()
	}
	l.mu.Unlock()
	l.loop.Close() // calls the ends of pairs, which take mu
	if l.mint != nil {
		l.mint.Close()
	}
}

// Stats reads the counters.
func (l *Loopback) Stats() LoopbackStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Active, s.Flows = len(l.joined), l.flows
	return s
}

// Ready is called by the loop when a client is there.
func (p *LoopbackPort) Ready(uint32) {
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
		if len(p.l.joined)+len(p.l.dials) >= p.l.most {
			p.pauseLocked()
			return
		}
		client, from, err := rawsock.Accept(p.fd)
		if err != nil {
			if err != unix.EAGAIN {
				p.pauseLocked()
			}
			return
		}
		p.l.serveLocked(client, from.Addr().Is6(), p.to, mintTries)
	}
}

// pauseLocked leaves the clients in the backlog for a while: a listener with something in it is ready all the time.
func (p *LoopbackPort) pauseLocked() {
	if p.paused {
		return
	}
	p.paused = true
	_ = p.l.loop.Rearm(p.fd, 0, p.token)
	time.AfterFunc(acceptPause, func() {
		p.l.mu.Lock()
		defer p.l.mu.Unlock()
		p.paused = false
		if !p.closed {
			_ = p.l.loop.Rearm(p.fd, unix.EPOLLIN, p.token)
		}
	})
}

// Serve leads one more client, a connected non-blocking socket that it takes over, as if it had come by a port.
func (l *Loopback) Serve(client int, ipv6 bool, to uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		rawsock.Reset(client)
		return
	}
	l.serveLocked(client, ipv6, to, mintTries)
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
func (l *Loopback) serveLocked(client int, ipv6 bool, to uint16, tries int) {
	rawsock.NoDelay(client)
	dst, alt := loopbacks(ipv6, to)
	if l.dialLocked(client, dst, alt) {
		return
	}
	if tries == 0 {
		l.stats.Refused++
		rawsock.Reset(client)
		return
	}
	w := &loopbackWait{client: client}
	l.waits[w] = struct{}{}
	w.timer = time.AfterFunc(mintRetry, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, there := l.waits[w]; there {
			delete(l.waits, w)
			l.serveLocked(client, ipv6, to, tries-1)
		}
	})
}

// loopbackWait is a client for whom there was no socket.
type loopbackWait struct {
	client int
	timer  *time.Timer
}

// dialLocked connects to dst, and to alt where nobody listens on that. It is false, and the client still the caller's, when
// there is no socket for it at the moment.
func (l *Loopback) dialLocked(client int, dst, alt netip.AddrPort) bool {
	for {
		fd, done, err := l.connect(dst)
		if err == errNoMint {
			return false
		}
		if err == nil && !done {
			d := &loopbackDial{l: l, client: client, fd: fd, dst: dst, alt: alt}
			if d.token, err = l.loop.Watch(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, d); err == nil {
				l.dials[d] = struct{}{}
				return true
			}
			unix.Close(fd)
		}
		if err == nil {
			l.joinLocked(client, fd, dst)
			return true
		}
		if !alt.IsValid() || starved(err) {
			l.stats.Refused++
			rawsock.Reset(client)
			return true
		}
		dst, alt = alt, netip.AddrPort{}
	}
}

// errNoMint says that the stock of sockets is empty.
var errNoMint = errors.New("no socket")

// connect begins a connection to a server.
func (l *Loopback) connect(dst netip.AddrPort) (fd int, done bool, err error) {
	if l.mint == nil {
		return startDial(egress{}, dst, 0)
	}
	if fd, err = l.mint.Get(dst.Addr().Is6(), false); err != nil {
		return -1, false, errNoMint
	}
	if done, err = rawsock.ConnectState(fd, dst); err == nil && !done {
		done, err = rawsock.ConnectState(fd, dst)
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// Ready is called when the connect has ended.
func (d *loopbackDial) Ready(uint32) {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, there := l.dials[d]; !there {
		return
	}
	done, err := rawsock.ConnectState(d.fd, d.dst)
	if err == nil && !done { // an event from before the wait
		_ = l.loop.Rearm(d.fd, unix.EPOLLOUT|unix.EPOLLONESHOT, d.token)
		return
	}
	d.endLocked()
	switch {
	case err == nil:
		rememberErrors(d.fd, d.dst.Addr().Is4(), 0)
		l.joinLocked(d.client, d.fd, d.dst)
	case d.alt.IsValid():
		unix.Close(d.fd)
		if !l.dialLocked(d.client, d.alt, netip.AddrPort{}) {
			l.stats.Refused++
			rawsock.Reset(d.client)
		}
	default:
		l.stats.Refused++
		unix.Close(d.fd)
		rawsock.Reset(d.client)
	}
}

func (d *loopbackDial) endLocked() {
	d.l.loop.Unwatch(d.fd, d.token)
	delete(d.l.dials, d)
}

func (l *Loopback) joinLocked(client, server int, dst netip.AddrPort) {
	if isSelf(server, dst) { // nobody listens there: the kernel has chosen that very port for our own end
		l.stats.Refused++
		rawsock.Reset(server)
		rawsock.Reset(client)
		return
	}
	rawsock.NoDelay(server)
	var pair *splice.Pair
	pair, err := l.loop.Join(client, server, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.joined, pair)
	})
	if err != nil { // no memory, or closed
		rawsock.Reset(client)
		rawsock.Reset(server)
		return
	}
	l.joined[pair] = struct{}{}
	l.stats.Connections++
}
