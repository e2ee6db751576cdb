package rootlessport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/breaker"
	"rootlessnet/internal/clientaddr"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/netns"
	"rootlessnet/splice"
)

const (
	// After plainFailures clients in a row that only a plain socket could connect, a port uses plain sockets for plainFor. A server
	// that is merely busy answers some of the transparent sockets in between.
	plainFailures = 3
	plainFor      = 10 * time.Minute
)

// direct is the datapath for TCP by sockets of the container's namespace: one that is bound to the client's address connects to
// the server, and splice(2) moves the data between it and the client's socket.
type direct struct {
	log     *slog.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	get     getSocket
	routes  *netlink.Handle // of the namespace; nil in tests
	pool    *netns.Pool     // nil in tests
	loop    *splice.Loop
	waiting *inbound.Dialler // clients that the server has not answered yet
	group   *spin.Group

	mu     sync.Mutex
	child  netip.Addr         // guarded by mu
	inside clientaddr.Network // guarded by mu
	open   []*inbound.Listener
	closed bool // guarded by mu
}

// getSocket takes a socket of the namespace out of the pool, a transparent or a plain one. The error may be
// netns.ErrPoolEmpty, for the moment.
type getSocket func(ipv6, plain bool) (fd int, err error)

func newDirect(path string, child netip.Addr, log *slog.Logger) (*direct, error) {
	var routes *netlink.Handle
	err := netns.RunAt(path, func() (err error) {
		routes, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket in the network namespace %s: %w", path, err)
	}
	pool, err := netns.OpenPoolAt(path, 0)
	if err != nil {
		routes.Close()
		return nil, err
	}
	d, err := startDirect(func(ipv6, plain bool) (int, error) {
		if plain {
			return pool.GetPlain(ipv6)
		}
		return pool.Get(ipv6, false)
	}, child, log)
	if err != nil {
		pool.Close()
		routes.Close()
		return nil, err
	}
	d.routes, d.pool = routes, pool
	d.findGateways()
	return d, nil
}

func startDirect(get getSocket, child netip.Addr, log *slog.Logger) (*direct, error) {
	d := &direct{log: log, get: get, child: child, group: spin.NewGroup()}
	var err error
	if d.loop, err = splice.NewLoop(log, d.group); err != nil {
		d.group.Close()
		return nil, err
	}
	d.waiting = inbound.NewDialler(d.loop)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d, nil
}

// findGateways looks up the gateways of the namespace's default routes, which are the source addresses of clients whose own address
// the server cannot see. The caller holds mu, or is the only user of d.
func (d *direct) findGateways() {
	d.inside = clientaddr.Network{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := d.routes.RouteList(nil, family)
		if err != nil {
			continue
		}
		for _, r := range routes {
			a, ok := netip.AddrFromSlice(r.Gw)
			if a = a.Unmap(); ok && (r.Dst == nil || r.Dst.IP.IsUnspecified()) && !a.IsLinkLocalUnicast() {
				if a.Is4() {
					d.inside.Gateway4 = a
				} else {
					d.inside.Gateway6 = a
				}
				break
			}
		}
	}
}

// setChild implements datapath.
func (d *direct) setChild(a netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.child = a
	if d.routes != nil {
		d.findGateways()
	}
	return nil
}

// ends returns the addresses of a connection inside: src, which the server sees as its client's, and dst, the server's. If src is
// invalid the kernel chooses the source address. src may be in a subnet of the namespace: answers are routed back by a firewall
// mark, not to the link.
func (d *direct) ends(client netip.AddrPort, port uint16) (src, dst netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dst = inContainer(d.child, port)
	return d.inside.Source(client, dst.Addr()), dst
}

func (d *direct) close() {
	d.cancel()
	d.mu.Lock()
	open := d.open
	d.open, d.closed = nil, true
	d.mu.Unlock()
	for _, l := range open {
		l.Close()
	}
	d.waiting.Close()
	d.loop.Close()
	d.group.Close()
	if d.pool != nil {
		d.pool.Close()
		d.routes.Close()
	}
}

// listen serves a port at one address of the host.
func (d *direct) listen(p Port, addr netip.AddrPort) error {
	tcp, err := listenTCP(addr)
	if err != nil {
		return err
	}
	h := &handler{d: d, port: p, transparent: breaker.New(plainFailures, plainFor)}
	// The handler may wait for a socket. What the listener accepts inherits its options.
	l, err := inbound.Listen(d.group, tcp, true, rawsock.NoDelay, h)
	if err != nil {
		return err
	}
	d.mu.Lock()
	if !d.closed {
		d.open = append(d.open, l)
		d.mu.Unlock()
		return nil
	}
	d.mu.Unlock()
	l.Close()
	return net.ErrClosed
}

// pause waits for t, or until close.
func (d *direct) pause(t time.Duration) {
	select {
	case <-time.After(t):
	case <-d.ctx.Done():
	}
}
