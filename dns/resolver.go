package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	mdns "github.com/miekg/dns"
)

// Config says whom to ask and what to answer. The zero value forwards to whom the host asks.
type Config struct {
	// ResolvConf is the host's file; empty means /etc/resolv.conf. It may be missing.
	ResolvConf string
	// Upstreams are asked instead of the file's servers, when there are any (--dns). Port 0 means 53.
	Upstreams []netip.AddrPort
	// Search and Options go to the guest instead of the file's, when there are any (--dns-search, --dns-opt). A search
	// of "." means none.
	Search, Options []string
	// Names are answered here, with these addresses and for no other type, and never forwarded. Case and a trailing
	// dot do not matter. A name without addresses exists and has none.
	Names map[string][]netip.Addr
	// MaxUDP is the most bytes an answer over UDP may have, below what the client announces; 0 means 4096, less than
	// 512 means 512. Where the link does not fragment, its MTU less 48.
	MaxUDP int
	// Logger; nil discards. Names asked for are never logged.
	Logger *slog.Logger
	// Dial opens the sockets to the upstreams, network "udp" or "tcp"; a "udp" one must be connected and have a random
	// port. nil means net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Error is what New fails with.
type Error struct {
	Op  string // "names" or "upstreams"
	Err error
}

func (e *Error) Error() string { return "dns: " + e.Op + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

var errMalformed = errors.New("malformed message")

// Resolver answers the guest's queries. All methods are safe for concurrent use.
type Resolver struct {
	cfg  Config
	path string
	log  *slog.Logger
	time timing

	ctx    context.Context // done when closed
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // every goroutine of ours; added to under mu, or by one that is counted already

	current   atomic.Pointer[hostConfig]
	names     atomic.Pointer[names]
	preferred atomic.Pointer[preference]
	changed   chan struct{}
	inflight  chan struct{} // one element per query being worked on
	conns     chan struct{} // one element per connection
	stats     counters
}

// New reads the host's file and starts following it. It fails only for a Config that makes no sense. The caller must
// Close the resolver.
func New(cfg Config) (*Resolver, error) { return newResolver(cfg, defaultTiming) }

func newResolver(cfg Config, t timing) (*Resolver, error) {
	upstreams := make([]netip.AddrPort, 0, len(cfg.Upstreams))
	for _, u := range cfg.Upstreams {
		if !u.Addr().IsValid() {
			return nil, &Error{"upstreams", errors.New("invalid address")}
		}
		if u.Port() == 0 {
			u = netip.AddrPortFrom(u.Addr(), dnsPort)
		}
		upstreams = append(upstreams, netip.AddrPortFrom(u.Addr().Unmap(), u.Port()))
	}
	cfg.Upstreams = upstreams
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.MaxUDP == 0 {
		cfg.MaxUDP = defaultMaxUDP
	}
	r := &Resolver{
		cfg:      cfg,
		path:     cfg.ResolvConf,
		log:      cfg.Logger,
		time:     t,
		changed:  make(chan struct{}, 1),
		inflight: make(chan struct{}, maxInflight),
		conns:    make(chan struct{}, maxTCPConns),
	}
	if r.path == "" {
		r.path = "/etc/resolv.conf"
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if err := r.SetNames(cfg.Names); err != nil {
		return nil, err
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	before := stat(r.path) // before it is read: a change in between is then seen
	r.install(r.load())
	r.wg.Add(1)
	go r.watch(before)
	return r, nil
}

// SetNames replaces Config.Names while the resolver runs.
func (r *Resolver) SetNames(in map[string][]netip.Addr) error {
	n, err := newNames(in)
	if err != nil {
		return &Error{"names", err}
	}
	r.names.Store(n)
	return nil
}

// Close ends every query and connection and returns when no goroutine of ours is left, so it must not be called from a
// reply function. What comes later is dropped. It may be called more than once.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// begin counts the caller as one of our goroutines, unless the resolver is closed.
func (r *Resolver) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.wg.Add(1)
	}
	return !r.closed
}

// ServeUDP works on one datagram. It never blocks and does not keep msg. reply is called at most once, on another
// goroutine, possibly after the client is gone; it owns its argument.
func (r *Resolver) ServeUDP(msg []byte, reply func(answer []byte)) {
	r.stats.queries.Add(1)
	if len(msg) < minMessage || len(msg) > maxMessage || msg[2]&(bitQR>>8) != 0 {
		r.stats.malformed.Add(1)
		return
	}
	select {
	case r.inflight <- struct{}{}:
	default:
		r.stats.inflightFull.Add(1)
		return
	}
	if !r.begin() {
		<-r.inflight
		return
	}
	q, rcode, _ := parseQuery(append([]byte(nil), msg...))
	go r.serveUDP(q, rcode, reply)
}

func (r *Resolver) serveUDP(q *query, rcode int, reply func([]byte)) {
	defer r.wg.Done()
	defer func() { <-r.inflight }()
	msg := r.answer(r.ctx, q, rcode, false)
	if msg == nil {
		return
	}
	msg, cut := q.fit(msg, r.udpLimit(q))
	if cut {
		r.stats.truncated.Add(1)
	}
	r.stats.answers.Add(1)
	reply(msg)
}

// udpLimit is the most bytes the client takes over UDP.
func (r *Resolver) udpLimit(q *query) int { return max(minUDPSize, min(q.size, r.cfg.MaxUDP)) }

// answer returns the answer to q, of any length, or nil when ctx is done. rcode is what parseQuery made of it.
func (r *Resolver) answer(ctx context.Context, q *query, rcode int, viaTCP bool) []byte {
	if rcode != mdns.RcodeSuccess {
		r.stats.rejected.Add(1)
		return q.errorAnswer(rcode)
	}
	if msg, ours := r.names.Load().answer(q); ours {
		r.stats.local.Add(1)
		return msg
	}
	msg := r.forward(ctx, q, viaTCP)
	if ctx.Err() != nil {
		return nil
	}
	if msg == nil {
		r.stats.unanswered.Add(1)
		return q.errorAnswer(mdns.RcodeServerFailure)
	}
	return withID(msg, q.id())
}
