package tcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/lockrank"
	"rootlessnet/stack"
)

// guestDialer is the part of *stack.Stack that inbound connections need.
type guestDialer interface {
	DialTCP(ctx context.Context, src, dst netip.AddrPort) (*stack.Conn, error)
}

// Path is the stack path: it joins TCP connections that end in the userspace stack with sockets of the host, both ways. All
// methods are safe for concurrent use.
type Path struct {
	f     *forwarder.Forwarder
	guest guestDialer

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	keepAlive       atomic.Int64  // a time.Duration; see SetKeepAlive
	toHost, toGuest atomic.Uint64 // bytes of payload since the start

	mu     lockrank.Mutex
	closed bool                     // guarded by mu
	conns  map[*connection]struct{} // guarded by mu
}

var _ forwarder.ClientServer = (*Path)(nil)

// New returns a Path without connections. guest is the stack, of which it needs DialTCP.
func New(f *forwarder.Forwarder, guest guestDialer) *Path {
	p := &Path{f: f, guest: guest, conns: map[*connection]struct{}{}}
	p.mu.SetRank(lockrank.StackPath)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// SetKeepAlive has every connection that begins from now on send a segment to the guest at least once per interval; 0 leaves
// an idle connection silent. It keeps the entries of the nftables sets inside from expiring.
func (p *Path) SetKeepAlive(interval time.Duration) { p.keepAlive.Store(int64(interval)) }

// Close resets every connection and waits for every goroutine. Nothing may be handed to the Path any more.
func (p *Path) Close() {
	p.mu.Lock()
	p.closed = true
	conns := make([]*connection, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	p.cancel()
	for _, c := range conns {
		c.abort()
	}
	p.wg.Wait()
}

// Stats are the Path's own counters; what it shares with the splice path is in forwarder.TCPCounters.
type Stats struct {
	Active                    int    // connections joined at this moment
	BytesToHost, BytesToGuest uint64 // payload since the start
}

// Stats reads the counters.
func (p *Path) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Active: len(p.conns), BytesToHost: p.toHost.Load(), BytesToGuest: p.toGuest.Load()}
}

// enter registers a goroutine of p; false means that p is closed.
func (p *Path) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.wg.Add(1)
	return true
}

// HandleTCP serves one connection that the guest opens: decided, dialled, and only then accepted.
func (p *Path) HandleTCP(req *stack.TCPRequest) {
	if !p.enter() {
		req.Ignore()
		return
	}
	defer p.wg.Done()
	d := p.f.Decide(req.Key(flow.TCP), 1)
	switch d.Action {
	case forwarder.Resolve:
		p.serveDNS(req, d.Resolver)
		return
	case forwarder.Refuse:
		d.Refusal.Answer(req)
		return
	}
	dest := d.Dst.Addr()
	if !p.f.Attempts.Begin(dest) {
		p.f.TCP.DialLimit.Add(1)
		req.Ignore() // the guest sends its SYN again
		return
	}
	h, err := p.dial(req, &d)
	p.f.Attempts.End(dest)
	if err != nil {
		p.f.TCP.DialErrors.Add(1)
		forwarder.RefusalOf(err, flow.TCP, dest.Is4(), req.Dst.Addr().Is4()).Answer(req)
		return
	}
	c, err := p.accept(req)
	if err != nil {
		h.reset()
		return
	}
	p.run(c, h, &d)
}

// accept completes the guest's handshake.
func (p *Path) accept(req *stack.TCPRequest) (*stack.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, forwarder.GuestTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, req.Cancel)
	defer stop()
	return req.Accept()
}

// dial connects to the decision's destination, or to its alternative when nothing listens there: a service on the host's
// loopback may listen on one family only, or there may be only one. Without free descriptors it waits a while.
func (p *Path) dial(req *stack.TCPRequest, d *forwarder.Decision) (*hostConn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, forwarder.DialTimeout)
	defer cancel()
	for try := 0; ; try++ {
		h, err := p.dialOnce(ctx, req, d.Dst)
		if err != nil && d.Alt.IsValid() && !forwarder.OutOfResources(err) {
			alt, aerr := p.dialOnce(ctx, req, d.Alt)
			if aerr == nil || forwarder.OutOfResources(aerr) || errors.Is(aerr, syscall.ECONNREFUSED) {
				h, err = alt, aerr
			}
		}
		if !forwarder.OutOfResources(err) || try == forwarder.MaxDialRetries {
			return h, err
		}
		p.f.TCP.DialRetries.Add(1)
		select {
		case <-time.After(forwarder.DialRetryPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// dialOnce connects to dst within the budget of descriptors.
func (p *Path) dialOnce(ctx context.Context, req *stack.TCPRequest, dst netip.AddrPort) (*hostConn, error) {
	e := p.f.Endpoint(req.Endpoint)
	if e == nil {
		return nil, syscall.ENETUNREACH // the endpoint was removed after the decision
	}
	if !p.f.Budget.Take(fdbudget.Stack, 1) {
		return nil, syscall.EMFILE
	}
	h, err := dialHost(ctx, e.Addresses().EgressTo(dst.Addr()), dst, req.TOS)
	if err != nil {
		p.f.Budget.Give(fdbudget.Stack, 1)
		return nil, err
	}
	h.budget, h.peer = p.f.Budget, dst
	return h, nil
}

// serveDNS has the resolver serve the connection.
func (p *Path) serveDNS(req *stack.TCPRequest, r forwarder.Resolver) {
	c, err := p.accept(req)
	if err != nil {
		return
	}
	p.keepOnLink(c)
	nc := c.NetConn()
	defer nc.Close()
	stop := context.AfterFunc(p.ctx, func() { _ = nc.Close() })
	defer stop()
	r.ServeTCP(nc)
}

// keepOnLink applies SetKeepAlive to a connection.
func (p *Path) keepOnLink(c *stack.Conn) {
	if interval := time.Duration(p.keepAlive.Load()); interval > 0 {
		c.EnableKeepAlive(interval)
	}
}

// panicked logs a panic that ends one connection.
func (p *Path) panicked(e any) {
	p.f.Log.Error("panic in a connection of the stack path; the connection is reset", "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
}
