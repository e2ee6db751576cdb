package udp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/procnet"
	"rootlessnet/internal/spin"
	"rootlessnet/stack"
)

// guest is what Path needs of the stack. All methods may be called from any goroutine and keep nothing of their
// arguments.
type guest interface {
	WriteUDP(d *stack.Datagram) error
	WriteUDPError(flow stack.Flow, payload []byte, e stack.ICMPError) error
	WriteEchoReply(e *stack.Echo) error
	WriteEchoError(req *stack.Echo, e stack.ICMPError) error
}

var _ guest = (*stack.Stack)(nil)

const (
	// maxSockets caps the outbound sockets; each is a descriptor and about 2 KiB of kernel memory.
	maxSockets = 16384
	// maxFlows caps the table (about 800 bytes each): the default of nf_conntrack_max on a small machine.
	maxFlows = 65536
	// maxFlowsPerSocket keeps one program that sends to very many remotes, or one published port, from filling the table.
	maxFlowsPerSocket = 8192

	// ICMP errors sent to the guest, per second and in a burst: net.ipv4.icmp_msgs_per_sec, and a burst that lets a port scan be answered.
	errorRate  = 1000
	errorBurst = 200
)

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

// Path carries UDP and ICMP echo between the guest and the host. Its Handle methods are those of stack.Handler. All
// methods may be called from any goroutine.
type Path struct {
	f          *forwarder.Forwarder
	guest      guest
	log        *slog.Logger
	now        func() time.Duration // since some fixed moment; monotonic
	maxSockets int
	maxFlows   int
	maxPeers   int               // flows of one socket
	localPorts procnet.PortRange // from which the host's kernel gives ports to clients
	epoll      *os.File
	epfd       int // of epoll, which Close closes after the sockets
	member     *spin.Member
	events     [pollEvents]unix.EpollEvent // of the handler run, as is receiver
	receiver   *receiver
	stop       chan struct{}
	wg         sync.WaitGroup // reader and sweeper
	pingOnce   sync.Once      // logs the lack of permission
	count      counters
	errLimit   limiter

	table
}

// New starts the reader and the sweeper; Close ends them. guest is the stack. The error is an *Error.
func New(f *forwarder.Forwarder, guest guest) (*Path, error) {
	start := time.Now()
	return newPath(f, guest, func() time.Duration { return time.Since(start) })
}

func newPath(f *forwarder.Forwarder, guest guest, now func() time.Duration) (*Path, error) {
	x := &Path{f: f, guest: guest, log: f.Log, now: now, maxFlows: maxFlows, maxPeers: maxFlowsPerSocket, stop: make(chan struct{}),
		maxSockets: min(maxSockets, f.Budget.Share(fdbudget.UDP))}
	x.localPorts, _ = procnet.LocalPorts()
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
func (x *Path) Close() error {
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

// HandleUDP sends one datagram, or a GSO batch, of the guest. It does not block and does not keep d.
func (x *Path) HandleUDP(d *stack.Datagram) {
	key := flowKey{d.Endpoint, protoUDP, d.Src, d.Dst}
	t, ok := x.touch(key, segments(d), len(d.Payload))
	if !ok {
		v := x.f.Decide(d.Key(flow.UDP), segments(d))
		switch v.Action {
		case forwarder.Resolve:
			x.handleDNS(d, v.Resolver)
			return
		case forwarder.Refuse:
			if e, send := v.Refusal.ICMP(); send {
				x.udpError(d, e)
			}
			return
		}
		var err error
		if t, err = x.open(key, &v, segments(d), len(d.Payload)); err == errRulesChanged {
			x.HandleUDP(d)
			return
		} else if err != nil {
			return // counted by open
		}
	}
	ttl := d.TTL
	if t.group && ttl == 0 {
		x.count.drop(DropTTL)
		return
	}
	if !t.gateway && !t.group {
		if ttl <= 1 {
			x.count.drop(DropTTL)
			x.udpError(d, stack.TimeExceeded(d.Dst.Addr().Is4()))
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
		if t.group {
			x.forget(key)
		}
	}
	x.count.outPkts.Add(uint64(segments(d) - lost))
	x.count.outBytes.Add(uint64(len(d.Payload) - bytes))
}

// forget removes a flow, so that the guest's next datagram opens it again.
func (x *Path) forget(key flowKey) {
	x.mu.Lock()
	defer x.unlock()
	if f := x.flows[key]; f != nil {
		x.removeFlow(f)
	}
}

// segments returns how many datagrams d is.
func segments(d *stack.Datagram) int {
	if d.GSOSize == 0 {
		return 1
	}
	return max(1, (len(d.Payload)+int(d.GSOSize)-1)/int(d.GSOSize))
}

// udpSendFailed counts the lost datagrams of d that the host did not take, and sends the guest the ICMP error that a router would have sent.
func (x *Path) udpSendFailed(t *target, d *stack.Datagram, err error, lost int) {
	if e, send := x.sendError(t.peer, d.Dst.Addr().Is4(), err, lost); send {
		x.udpError(d, e)
	}
}

// sendError counts n packets to peer that could not be sent, and returns the ICMP error for the guest, in its own family.
func (x *Path) sendError(peer netip.AddrPort, v4 bool, err error, n int) (stack.ICMPError, bool) {
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
		return stack.TooBig(v4, mtu), mtu > 0
	}
	x.count.drops[DropUnreachable].Add(uint64(n))
	if err == unix.ECONNREFUSED { // caused by an earlier packet: no remote can refuse this one before it was sent
		return stack.ICMPError{}, false
	}
	return forwarder.RefusalOf(err, flow.UDP, peer.Addr().Is4(), v4).ICMP()
}

// udpError sends the guest an ICMP error about its datagram d.
func (x *Path) udpError(d *stack.Datagram, e stack.ICMPError) {
	payload := d.Payload
	if d.GSOSize > 0 {
		payload = payload[:min(len(payload), int(d.GSOSize))]
	}
	x.sendUDPError(d.Flow, payload, e)
}

// sendUDPError sends an ICMP error about a datagram of the guest, unless that went to a group (RFC 1122 3.2.2).
func (x *Path) sendUDPError(f stack.Flow, payload []byte, e stack.ICMPError) {
	if f.Dst.Addr().IsMulticast() {
		return
	}
	if !x.errLimit.allow(x.now()) {
		x.count.drop(DropErrorRate)
		return
	}
	x.count.errors.Add(1)
	if err := x.guest.WriteUDPError(f, payload, e); err != nil {
		x.count.drop(DropGuestWrite)
	}
}

// handleDNS passes each query in d to the resolver.
func (x *Path) handleDNS(d *stack.Datagram, r forwarder.Resolver) {
	back := stack.Flow{Endpoint: d.Endpoint, Src: d.Dst, Dst: d.Src}
	size := int(d.GSOSize)
	if size == 0 {
		size = max(1, len(d.Payload))
	}
	for rest := d.Payload; len(rest) > 0; {
		n := min(size, len(rest))
		x.count.dns.Add(1)
		r.ServeUDP(rest[:n:n], func(answer []byte) {
			if err := x.guest.WriteUDP(&stack.Datagram{Flow: back, Payload: answer}); err != nil {
				x.count.drop(DropGuestWrite)
			}
		})
		rest = rest[n:]
	}
}

// HandleUDPError is called when the guest has answered a datagram of WriteUDP with an ICMP error. It cannot be passed on to the
// remote: an ordinary user sends no ICMP. A client of a published port whose server is not there in the client's family is
// forwarded to the other one, see UDPListen.
func (x *Path) HandleUDPError(f stack.Flow, e stack.ICMPError) {
	x.count.drop(DropGuestError)
	if stack.PortUnreachable(f.Src.Addr().Is4()) == (stack.ICMPError{Type: e.Type, Code: e.Code}) {
		x.guestRefused(flowKey{f.Endpoint, protoUDP, f.Dst, f.Src})
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
