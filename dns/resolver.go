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

// Config configures a Resolver. The zero value forwards to the host's upstreams.
type Config struct {
	// ResolvConf is the path of the host's file; empty means /etc/resolv.conf. The file need not exist.
	ResolvConf string
	// Upstreams replace the file's servers, if not empty (--dns). Port 0 means 53.
	Upstreams []netip.AddrPort
	// Search and Options replace the file's in the guest's resolv.conf, if not empty (--dns-search, --dns-opt). A search domain
	// of "." means none.
	Search, Options []string
	// Names are local names: queries for them are answered with these addresses (and the reverse queries with the names), have no
	// records of other types, and are never forwarded. Case and a trailing dot do not matter. The list of addresses may be empty.
	Names map[string][]netip.Addr
	// MaxUDP is the largest answer over UDP in bytes, if the client accepts as much; 0 means 4096, less than 512 means 512. On a
	// link without fragmentation it should be the MTU less 48.
	MaxUDP int
	// Logger; nil discards. The names in queries are never logged.
	Logger *slog.Logger
	// Dial opens the sockets to the upstreams; network is "udp" or "tcp". A UDP socket must be connected and have a random port.
	// nil means net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Error is the error of New and SetNames.
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
	closed bool           // guarded by mu
	wg     sync.WaitGroup // all goroutines of the resolver; Add is called under mu, or by a goroutine that is counted already

	current   atomic.Pointer[hostConfig]
	names     atomic.Pointer[names]
	preferred atomic.Pointer[preference]
	changed   chan struct{}
	inflight  chan struct{} // one element per query in flight
	conns     chan struct{} // one element per connection
	stats     counters
}

// New reads the host's file and starts to watch it. The only errors, *Error, are invalid Upstreams or Names. The caller must
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
	before := stat(r.path) // before reading, so that watch notices a change in between
	r.install(r.load())
	r.wg.Add(1)
	go r.watch(before)
	return r, nil
}

// SetNames replaces Config.Names while the resolver runs. The error is an *Error, and then nothing changes.
func (r *Resolver) SetNames(in map[string][]netip.Addr) error {
	n, err := newNames(in)
	if err != nil {
		return &Error{"names", err}
	}
	r.names.Store(n)
	return nil
}

// Close ends all queries and connections and waits for the resolver's goroutines, so it must not be called by a reply function.
// Later queries are dropped. It may be called more than once and always returns nil.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// begin adds the caller to r.wg and returns true, unless the resolver is closed.
func (r *Resolver) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.wg.Add(1)
	}
	return !r.closed
}

// ServeUDP answers one datagram. It does not block, and does not keep msg. reply is called at most once, on another goroutine,
// possibly after the client has closed its socket; it may keep its argument.
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

// udpLimit returns the largest answer over UDP for the client, in bytes.
func (r *Resolver) udpLimit(q *query) int { return max(minUDPSize, min(q.size, r.cfg.MaxUDP)) }

// answer returns the answer to q, of any length, or nil if ctx is done. rcode is the result of parseQuery.
func (r *Resolver) answer(ctx context.Context, q *query, rcode int, viaTCP bool) []byte {
	if rcode != mdns.RcodeSuccess {
		r.stats.rejected.Add(1)
		return q.errorAnswer(rcode)
	}
	if msg, local := r.names.Load().answer(q); local {
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
