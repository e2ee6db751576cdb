package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/spin"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

const (
	// maxDials bounds the connection attempts under way in each direction; it equals what the stack admits.
	maxDials = 8192
	// dialShare of RLIMIT_NOFILE may be outbound attempts, or black holes alone could take every descriptor.
	dialShare = 4
	// minShare is what one destination may always have under way.
	minShare = 64

	// dialTimeout is longer than Linux's own (tcp_syn_retries 6: 127 s), so that the kernel's verdict comes first.
	dialTimeout = 130 * time.Second
	// guestDialTimeout bounds handshakes with the guest, both ways: it is one link away; it answers or does not want to.
	guestDialTimeout = 20 * time.Second

	// Out of file descriptors: wait this long, this often, then leave the guest to its own retransmission. Slow
	// enough to cost nothing, fast enough that service resumes within a second of a descriptor becoming free.
	starvedRetry = 200 * time.Millisecond
	starvedTries = 50

	dnsPort = 53
)

// guestDialer is the part of *stack.Stack that inbound connections need.
type guestDialer interface {
	DialTCP(ctx context.Context, src, dst netip.AddrPort) (*stack.Conn, error)
}

// StreamsConfig describes the TCP half.
type StreamsConfig struct {
	Guest  guestDialer
	Policy judge
	// Gateway and guest addresses; an invalid one turns the family off.
	Gateway4, Gateway6, Guest4, Guest6 netip.Addr
	// Subnets are the prefixes of the guest's link. It looks for their addresses on the link, so a client that has one
	// of them appears as the gateway.
	Subnets []netip.Prefix
	// Loopback serves the clients of published ports that come by the host's loopback; nil: they go by the link as others.
	Loopback *Loopback
	// ServeDNS takes over connections to port 53 of DNSAddrs; nil: they are judged like any other port.
	ServeDNS func(net.Conn)
	// DNSAddrs are the addresses that answer DNS; nil means the gateway's.
	DNSAddrs []netip.Addr
	// Source4 and Source6 are what the host's sockets are bound to, but for those to the host's loopback; the zero
	// value leaves it to the host's routes.
	Source4, Source6 netip.Addr
	// Spin is the exchanges that clients and connections take part in; nil: everybody sleeps at once.
	Spin *spin.Group
	// Logger; nil discards.
	Logger *slog.Logger
}

// Streams joins TCP connections of the guest with sockets of the host, both ways. All methods are safe for concurrent
// use.
type Streams struct {
	cfg   StreamsConfig
	addrs atomic.Pointer[Addresses] // those of cfg, or of SetAddresses
	log   *slog.Logger
	stats streamCounters

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	maxDials int // outbound; maxDials or what RLIMIT_NOFILE allows
	dialMu   sync.Mutex
	dials    map[netip.Addr]int // under way, by destination; guarded by dialMu
	nDials   int                // guarded by dialMu

	kernel *kernelRoad // nil without one; set before the first connection

	clients atomic.Int64 // of published ports, not connected to the guest yet

	mu        sync.Mutex
	closed    bool                       // guarded by mu
	flows     map[*flow]struct{}         // guarded by mu
	published map[*PublishedTCP]struct{} // guarded by mu
}

// NewStreams returns a Streams without published ports.
func NewStreams(cfg StreamsConfig) *Streams {
	t := &Streams{cfg: cfg, log: cfg.Logger, maxDials: maxDials, dials: map[netip.Addr]int{}, flows: map[*flow]struct{}{}, published: map[*PublishedTCP]struct{}{}}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		t.maxDials = int(max(1, min(maxDials, lim.Cur/dialShare)))
	}
	t.addrs.Store(&Addresses{Gateway4: cfg.Gateway4, Gateway6: cfg.Gateway6, Guest4: cfg.Guest4, Guest6: cfg.Guest6, Source4: cfg.Source4, Source6: cfg.Source6})
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// Addresses are those that may change while the guest runs; StreamsConfig explains them.
type Addresses struct {
	Gateway4, Gateway6, Guest4, Guest6, Source4, Source6 netip.Addr
	// Guests are all addresses of the guest's link. Of a client that has one of them nothing can come by the link: it appears as
	// the gateway. Guest4 and Guest6 need not be repeated where they are the server's.
	Guests []netip.Addr
	// Interface4 and Interface6 are the indexes of the interfaces that packets of the family leave the host by, but for
	// those to its loopback; 0 leaves it to the host's routes.
	Interface4, Interface6 int
}

// SetAddresses replaces those of the config, for connections that begin from now on.
func (t *Streams) SetAddresses(a Addresses) { t.addrs.Store(&a) }

// Close stops listening, resets every connection and waits for every goroutine.
func (t *Streams) Close() {
	t.mu.Lock()
	t.closed = true
	var flows []*flow
	for f := range t.flows {
		flows = append(flows, f)
	}
	var pubs []*PublishedTCP
	for p := range t.published {
		pubs = append(pubs, p)
	}
	t.mu.Unlock()
	t.cancel()
	for _, p := range pubs {
		p.Close()
	}
	for _, f := range flows {
		f.abort()
	}
	t.wg.Wait()
	if t.kernel != nil {
		t.kernel.close()
	}
}

// enter registers a goroutine of t; false means that t is closed.
func (t *Streams) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	return true
}

// HandleTCP serves one connection the guest opens: judged, dialled, and only then accepted.
func (t *Streams) HandleTCP(req *stack.TCPRequest) {
	if !t.enter() {
		req.Ignore()
		return
	}
	defer t.wg.Done()
	if t.cfg.ServeDNS != nil && req.Dst.Port() == dnsPort && t.answersDNS(req.Dst.Addr()) {
		t.serveDNS(req)
		return
	}
	v := t.cfg.Policy.Judge(policy.TCP, req.Src, req.Dst)
	if v.Action != policy.Allow {
		t.stats.refuse(v.Reason)
		t.refuse(req, v)
		return
	}
	dest := v.Dst.Addr()
	if !t.acquire(dest) {
		t.stats.overShare.Add(1)
		req.Ignore() // the guest sends its SYN again
		return
	}
	h, err := t.dial(v, req.TOS)
	t.release(dest)
	if err != nil {
		t.stats.dialErrors.Add(1)
		t.answerDialError(req, err)
		return
	}
	c, err := t.accept(req)
	if err != nil {
		h.reset()
		return
	}
	t.run(c, h, Outbound)
}

// accept completes the guest's handshake.
func (t *Streams) accept(req *stack.TCPRequest) (*stack.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, guestDialTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, req.Cancel)
	defer stop()
	return req.Accept()
}

// dial connects to the verdict's destination, or to its alternative when that fails (a service on the host's loopback
// may listen on one family only, or there may be only one). Without free descriptors it waits a while.
func (t *Streams) dial(v policy.Verdict, tos uint8) (*hostConn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, dialTimeout)
	defer cancel()
	for try := 0; ; try++ {
		h, err := dialHost(ctx, t.source(v.Dst), v.Dst, tos)
		if err != nil && v.Alt.IsValid() && !starved(err) {
			alt, aerr := dialHost(ctx, t.source(v.Alt), v.Alt, tos)
			if aerr == nil || starved(aerr) || errors.Is(aerr, syscall.ECONNREFUSED) {
				h, err = alt, aerr
			}
		}
		if !starved(err) || try == starvedTries {
			return h, err
		}
		t.stats.starved.Add(1)
		select {
		case <-time.After(starvedRetry):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func starved(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}

// acquire takes a dial slot for dest. A destination may hold half of what is free, so that each black hole leaves as
// much again for everybody else.
func (t *Streams) acquire(dest netip.Addr) bool {
	t.dialMu.Lock()
	defer t.dialMu.Unlock()
	if t.nDials >= t.maxDials || t.dials[dest] >= max(min(minShare, t.maxDials/2), (t.maxDials-t.nDials)/2) {
		return false
	}
	t.dials[dest]++
	t.nDials++
	return true
}

func (t *Streams) release(dest netip.Addr) {
	t.dialMu.Lock()
	defer t.dialMu.Unlock()
	t.nDials--
	if t.dials[dest]--; t.dials[dest] == 0 {
		delete(t.dials, dest)
	}
}

func (t *Streams) answersDNS(a netip.Addr) bool {
	if t.cfg.DNSAddrs == nil {
		now := t.addrs.Load()
		return a == now.Gateway4 || a == now.Gateway6
	}
	return slices.Contains(t.cfg.DNSAddrs, a)
}

// source is how a connection to dst leaves the host.
func (t *Streams) source(dst netip.AddrPort) egress { return t.addrs.Load().egressTo(dst.Addr()) }

func (t *Streams) serveDNS(req *stack.TCPRequest) {
	c, err := t.accept(req)
	if err != nil {
		return
	}
	t.keepOnLink(c)
	nc := c.NetConn()
	defer nc.Close()
	stop := context.AfterFunc(t.ctx, func() { _ = nc.Close() })
	defer stop()
	t.cfg.ServeDNS(nc)
}

// keepOnLink keeps the rules inside from forgetting that a connection is on the link.
func (t *Streams) keepOnLink(c *stack.Conn) {
	if t.kernel != nil && t.kernel.k.LinkPace > 0 {
		c.EnableKeepAlive(t.kernel.k.LinkPace)
	}
}

// refuse answers a connection that policy does not allow.
func (t *Streams) refuse(req *stack.TCPRequest, v policy.Verdict) {
	v4 := req.Dst.Addr().Is4()
	switch v.Action {
	case policy.Refuse:
		req.Reset()
	case policy.Prohibit:
		_ = req.Unreachable(prohibited(v4))
	case policy.Unreachable:
		_ = req.Unreachable(hostUnreachable(v4))
	case policy.NoRoute:
		_ = req.Unreachable(netUnreachable(v4))
	default:
		req.Ignore()
	}
}

// answerDialError gives the guest what the host's socket got.
func (t *Streams) answerDialError(req *stack.TCPRequest, err error) {
	var de *dialError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		req.Reset()
	case errors.As(err, &de) && de.icmp != nil:
		_ = req.Unreachable(*de.icmp)
	default: // a timeout, or no resources: the guest's own timer decides
		req.Ignore()
	}
}

// Direction says who opened a connection.
type Direction uint8

const (
	Outbound Direction = iota // the guest
	Inbound                   // a client of a published port
)

func (d Direction) String() string {
	if d == Inbound {
		return "in"
	}
	return "out"
}

// streamCounters are updated without a lock.
type streamCounters struct {
	out, in    atomic.Uint64 // connections joined since the start
	overShare  atomic.Uint64
	dialErrors atomic.Uint64
	starved    atomic.Uint64
	badAccepts atomic.Uint64
	unanswered atomic.Uint64
	strays     atomic.Uint64
	toHost     atomic.Uint64 // bytes
	toGuest    atomic.Uint64 // bytes
	refused    [256]atomic.Uint64
}

func (c *streamCounters) refuse(r policy.Reason) { c.refused[uint8(r)].Add(1) }

// StreamStats is a snapshot of the TCP half.
type StreamStats struct {
	Active         int               `json:"active"`          // connections joined at this moment
	Spliced        int               `json:"spliced"`         // of them on the kernel's road
	Outbound       uint64            `json:"outbound"`        // joined since the start, opened by the guest
	Inbound        uint64            `json:"inbound"`         // joined since the start, opened by clients
	BytesToHost    uint64            `json:"bytes_to_host"`   // payload
	BytesToGuest   uint64            `json:"bytes_to_guest"`  // payload
	SplicedToHost  uint64            `json:"spliced_to_host"` // of them on the kernel's road: no frame of the link carried them
	SplicedToGuest uint64            `json:"spliced_to_guest"`
	Dialling       int               `json:"dialling"`        // attempts under way
	DialErrors     uint64            `json:"dial_errors"`     // refused, unreachable, timed out
	OverShare      uint64            `json:"over_share"`      // SYNs put off because their destination has too many attempts
	StarvedRetries uint64            `json:"starved_retries"` // waits for a free descriptor
	AcceptErrors   uint64            `json:"accept_errors"`   // accept failed, descriptors ran out
	Unanswered     uint64            `json:"unanswered"`      // offers on the kernel's road that the guest did not take up; it got another on the link
	Strays         uint64            `json:"strays"`          // connections to the kernel's road from inside that were not offered; reset
	Refused        map[string]uint64 `json:"refused"`         // by policy reason
}

// Stats returns the counters since NewStreams.
func (t *Streams) Stats() StreamStats {
	c := &t.stats
	s := StreamStats{Outbound: c.out.Load(), Inbound: c.in.Load(), BytesToHost: c.toHost.Load(), BytesToGuest: c.toGuest.Load(),
		DialErrors: c.dialErrors.Load(), OverShare: c.overShare.Load(), StarvedRetries: c.starved.Load(),
		AcceptErrors: c.badAccepts.Load(), Unanswered: c.unanswered.Load(), Strays: c.strays.Load(), Refused: map[string]uint64{}}
	for i := range c.refused {
		if n := c.refused[i].Load(); n > 0 {
			s.Refused[policy.Reason(i).String()] = n
		}
	}
	t.mu.Lock()
	s.Active = len(t.flows)
	t.mu.Unlock()
	if t.kernel != nil {
		toHost, toGuest, active := t.kernel.moved()
		s.SplicedToHost, s.SplicedToGuest, s.Spliced = toHost, toGuest, active
		s.BytesToHost, s.BytesToGuest, s.Active = s.BytesToHost+toHost, s.BytesToGuest+toGuest, s.Active+active
	}
	t.dialMu.Lock()
	s.Dialling = t.nDials
	t.dialMu.Unlock()
	return s
}

// FlowInfo describes one joined connection.
type FlowInfo struct {
	Direction Direction
	Flow      stack.Flow // as the guest sees it
	Since     time.Time
}

// Flows lists the connections joined at this moment.
func (t *Streams) Flows() []FlowInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := make([]FlowInfo, 0, len(t.flows))
	for f := range t.flows {
		l = append(l, FlowInfo{f.dir, f.c.Flow, f.since})
	}
	if t.kernel != nil {
		l = append(l, t.kernel.flows()...)
	}
	return l
}
