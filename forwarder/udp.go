package forwarder

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/spin"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// guest is what Datagrams needs of the stack. All methods may be called from any goroutine and keep nothing of their
// arguments.
type guest interface {
	WriteUDP(d *stack.Datagram) error
	WriteUDPError(flow stack.Flow, payload []byte, e stack.ICMPError) error
	WriteEchoReply(e *stack.Echo) error
	WriteEchoError(req *stack.Echo, e stack.ICMPError) error
}

var _ guest = (*stack.Stack)(nil)

// judge is what Datagrams needs of the policy. It does not block.
type judge interface {
	Judge(proto policy.Proto, src, dst netip.AddrPort) policy.Verdict
}

var _ judge = (*policy.Policy)(nil)

const (
	// Idle timeouts, those of nf_conntrack: nf_conntrack_udp_timeout is 30 s, but _stream is 120 s since Linux 4.18
	// and was 180 s before, which is what other helpers and RFC 4787 4.3 (not less than two minutes) settled on.
	unrepliedTimeout = 30 * time.Second
	assuredTimeout   = 180 * time.Second
	echoTimeout      = 30 * time.Second

	// sweepInterval is how late a timeout may be noticed: a sixth of the shortest.
	sweepInterval = 5 * time.Second

	// maxSockets caps the outbound sockets; each is a descriptor and about 2 KiB of kernel memory.
	maxSockets = 16384
	// socketShare of RLIMIT_NOFILE may be outbound sockets: the rest is for TCP and listeners.
	socketShare = 4
	// maxFlows caps the table (about 600 bytes each): the default of nf_conntrack_max on a small machine.
	maxFlows = 65536
	// maxFlowsPerSocket keeps one program that talks to everybody, or one published port, from taking all of it.
	maxFlowsPerSocket = 8192

	// ICMP errors told to the guest, a second and at once: net.ipv4.icmp_msgs_per_sec, and a burst that lets a port scan be answered.
	errorRate  = 1000
	errorBurst = 200
)

// DatagramsConfig says how to carry datagrams. Guest and Policy are required.
type DatagramsConfig struct {
	// Guest is the stack.
	Guest guest
	// Policy judges each new flow.
	Policy judge
	// Gateway4 and Gateway6 are our addresses in the guest's network. The zero value says that the guest has none of
	// the family; clients of published ports that cannot appear as themselves then have no address in it.
	Gateway4, Gateway6 netip.Addr
	// Subnets are the guest's own networks. A client of a published port whose address lies in one appears as the
	// gateway: the guest would look for it on its link and not answer through us. May be empty.
	Subnets []netip.Prefix
	// DNS is given the datagrams for port 53 of DNSAddrs; it must not block nor keep query,
	// and may call reply at most once, from any goroutine. nil: such datagrams are judged like any other.
	DNS func(query []byte, reply func(answer []byte))
	// DNSAddrs are the addresses that answer DNS; nil means the gateway's.
	DNSAddrs []netip.Addr
	// Source4 and Source6 are where datagrams leave the host, but for those to its loopback; the zero value leaves it
	// to the host's routes.
	Source4, Source6 netip.Addr
	// MaxSockets caps the outbound sockets. 0: a quarter of RLIMIT_NOFILE, at most 16384.
	MaxSockets int
	// Spin is the exchanges that the reader takes part in; nil: it sleeps at once.
	Spin *spin.Group
	// Logger gets what an administrator should know. nil: nothing is logged.
	Logger *slog.Logger
}

// Error is the error of this package's boundary.
type Error struct {
	Op   string         // "listen udp", "epoll"
	Addr netip.AddrPort // zero when none is concerned
	Err  error          // usually a unix.Errno
}

func (e *Error) Error() string {
	if e.Addr.IsValid() {
		return fmt.Sprintf("%s %v: %v", e.Op, e.Addr, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Datagrams carries UDP and ICMP echo between the guest and the host. Its Handle methods are those of stack.Handler.
// All methods may be called from any goroutine.
type Datagrams struct {
	cfg        DatagramsConfig
	addrs      atomic.Pointer[Addresses] // those of cfg, or of SetAddresses
	log        *slog.Logger
	now        func() time.Duration // since some fixed moment; monotonic
	maxSockets int
	maxFlows   int
	maxPeers   int       // flows of one socket
	localPorts [2]uint16 // net.ipv4.ip_local_port_range
	epoll      *os.File
	epfd       int // of epoll, which Close closes after the sockets
	member     *spin.Member
	events     [pollEvents]unix.EpollEvent // of the turn, as is receiver
	receiver   *receiver
	stop       chan struct{}
	wg         sync.WaitGroup // reader and sweeper
	pingOnce   sync.Once      // logs the lack of permission
	count      counters
	errLimit   limiter

	table
}

// NewDatagrams starts the reader and the sweeper; Close ends them. The error is an *Error.
func NewDatagrams(cfg DatagramsConfig) (*Datagrams, error) {
	start := time.Now()
	return newDatagrams(cfg, func() time.Duration { return time.Since(start) })
}

func newDatagrams(cfg DatagramsConfig, now func() time.Duration) (*Datagrams, error) {
	x := &Datagrams{cfg: cfg, log: cfg.Logger, now: now, maxSockets: cfg.MaxSockets, maxFlows: maxFlows,
		maxPeers: maxFlowsPerSocket, stop: make(chan struct{}), localPorts: localPortRange()}
	x.addrs.Store(&Addresses{Gateway4: cfg.Gateway4, Gateway6: cfg.Gateway6, Source4: cfg.Source4, Source6: cfg.Source6})
	if x.log == nil {
		x.log = slog.New(slog.DiscardHandler)
	}
	if x.maxSockets <= 0 {
		x.maxSockets = maxSockets
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
			x.maxSockets = int(max(1, min(maxSockets, lim.Cur/socketShare)))
		}
	}
	x.errLimit.tokens, x.errLimit.last = errorBurst, now()
	x.table.init()
	if err := x.openPoll(); err != nil {
		return nil, err
	}
	x.wg.Add(2)
	go x.readLoop()
	go x.sweepLoop()
	return x, nil
}

// Close closes every socket, published ones included, and returns when the goroutines have ended. It may be called
// more than once.
func (x *Datagrams) Close() error {
	x.mu.Lock()
	if x.closed {
		x.unlock()
		return nil
	}
	x.closed = true
	for _, s := range x.byFD {
		x.removeSocket(s)
	}
	x.unlock()
	close(x.stop)
	x.member.Leave()
	err := x.epoll.Close()
	x.wg.Wait()
	return err
}

// HandleUDP carries one datagram, or a train, of the guest. It does not block and does not keep d.
func (x *Datagrams) HandleUDP(d *stack.Datagram) {
	key := flowKey{protoUDP, d.Src, d.Dst}
	t, ok := x.touch(key, segments(d), len(d.Payload))
	if !ok {
		if x.isDNS(d.Dst) {
			x.handleDNS(d)
			return
		}
		v := x.cfg.Policy.Judge(policy.UDP, d.Src, d.Dst)
		if v.Action != policy.Allow {
			x.count.denied[v.Reason].Add(uint64(segments(d)))
			if e, tell := verdictError(v.Action, d.Dst.Addr().Is4()); tell {
				x.udpError(d, e)
			}
			return
		}
		var err error
		if t, err = x.open(key, v, segments(d), len(d.Payload)); err != nil {
			return // counted; the guest may try again
		}
	}
	ttl := d.TTL
	if !t.gateway {
		if ttl <= 1 {
			x.count.drop(DropTTL)
			x.udpError(d, timeExceeded(d.Dst.Addr().Is4()))
			return
		}
		ttl--
	}
	link, single := t.link, t.single
	lost, bytes, err := t.s.sendUDP(&t, d, ttl)
	if t.link != link || t.single != single {
		x.rememberLink(key, &t)
	}
	if err != nil {
		x.udpSendFailed(&t, d, err, lost)
	}
	x.count.outPkts.Add(uint64(segments(d) - lost))
	x.count.outBytes.Add(uint64(len(d.Payload) - bytes))
}

// segments returns how many datagrams d is.
func segments(d *stack.Datagram) int {
	if d.GSOSize == 0 {
		return 1
	}
	return max(1, (len(d.Payload)+int(d.GSOSize)-1)/int(d.GSOSize))
}

// udpSendFailed counts the lost datagrams of d that the host did not take, and tells the guest what a router would have told it.
func (x *Datagrams) udpSendFailed(t *target, d *stack.Datagram, err error, lost int) {
	if e, tell := x.sendError(t.peer, d.Dst.Addr().Is4(), err, lost); tell {
		x.udpError(d, e)
	}
}

// sendError counts n packets to peer that could not be sent, and returns what to tell the guest about them in its own family.
func (x *Datagrams) sendError(peer netip.AddrPort, v4 bool, err error, n int) (stack.ICMPError, bool) {
	switch err {
	case errSocketClosed:
		x.count.drops[DropClosed].Add(uint64(n))
		return stack.ICMPError{}, false
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		x.count.drops[DropSendBuffer].Add(uint64(n))
		return stack.ICMPError{}, false
	case unix.EMSGSIZE:
		x.count.drops[DropTooBig].Add(uint64(n))
		mtu := pathMTU(peer)
		return tooBig(v4, mtu), mtu > 0
	}
	x.count.drops[DropUnreachable].Add(uint64(n))
	if err == unix.ECONNREFUSED { // of other packets: nothing refuses one before it has left
		return stack.ICMPError{}, false
	}
	return errnoError(err, v4)
}

// udpError tells the guest that its datagram d failed.
func (x *Datagrams) udpError(d *stack.Datagram, e stack.ICMPError) {
	payload := d.Payload
	if d.GSOSize > 0 {
		payload = payload[:min(len(payload), int(d.GSOSize))]
	}
	x.tellUDP(stack.Flow{Src: d.Src, Dst: d.Dst}, payload, e)
}

func (x *Datagrams) tellUDP(f stack.Flow, payload []byte, e stack.ICMPError) {
	if !x.errLimit.allow(x.now()) {
		x.count.drop(DropErrorRate)
		return
	}
	x.count.errors.Add(1)
	if err := x.cfg.Guest.WriteUDPError(f, payload, e); err != nil {
		x.count.drop(DropGuestWrite)
	}
}

// SetAddresses replaces the gateways' addresses and the sources, and ends the flows that the policy, which was changed before, no longer
// leads where they go.
func (x *Datagrams) SetAddresses(a Addresses) {
	x.addrs.Store(&a)
	x.mu.Lock()
	defer x.unlock()
	for key, f := range x.flows {
		if f.s.pub != nil || key.proto != protoUDP {
			continue
		}
		v := x.cfg.Policy.Judge(policy.UDP, key.guest, key.remote)
		if v.Action != policy.Allow || v.Dst != f.peer && v.Alt != f.peer || (egress{f.local, int(f.scope)}) != x.source(f.peer.Addr()) {
			x.removeFlow(f)
		}
	}
}

func (x *Datagrams) isGateway(a netip.Addr) bool {
	now := x.addrs.Load()
	return a.IsValid() && (a == now.Gateway4 || a == now.Gateway6)
}

func (x *Datagrams) isDNS(dst netip.AddrPort) bool {
	if x.cfg.DNS == nil || dst.Port() != dnsPort {
		return false
	}
	if x.cfg.DNSAddrs == nil {
		return x.isGateway(dst.Addr())
	}
	return slices.Contains(x.cfg.DNSAddrs, dst.Addr())
}

func (x *Datagrams) handleDNS(d *stack.Datagram) {
	src, dst := d.Src, d.Dst
	size := int(d.GSOSize)
	if size == 0 {
		size = max(1, len(d.Payload))
	}
	for rest := d.Payload; len(rest) > 0; {
		n := min(size, len(rest))
		x.count.dns.Add(1)
		x.cfg.DNS(rest[:n:n], func(answer []byte) {
			if err := x.cfg.Guest.WriteUDP(&stack.Datagram{Flow: stack.Flow{Src: dst, Dst: src}, Payload: answer}); err != nil {
				x.count.drop(DropGuestWrite)
			}
		})
		rest = rest[n:]
	}
}

// HandleUDPError is told that the guest answered a datagram of ours with an ICMP error. The remote cannot be told: an
// ordinary user sends no ICMP. A client of a published port whose server is not there in the client's family is moved
// to the other one, see UDPListen.
func (x *Datagrams) HandleUDPError(f stack.Flow, e stack.ICMPError) {
	x.count.drop(DropGuestError)
	if portUnreachable(f.Src.Addr().Is4()) == (stack.ICMPError{Type: e.Type, Code: e.Code}) {
		x.moveClient(flowKey{protoUDP, f.Dst, f.Src})
	}
}

// limiter is a token bucket.
type limiter struct {
	mu     sync.Mutex
	tokens float64
	last   time.Duration
}

func (l *limiter) allow(now time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens = min(errorBurst, l.tokens+(now-l.last).Seconds()*errorRate)
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
