package rootlessport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/netns"
	"rootlessnet/splice"
)

const (
	// plainRow clients in a row that only a plain socket could connect switch a port to plain sockets for plainFor: a server
	// that is merely busy answers some transparent socket in between.
	plainRow = 3
	plainFor = 10 * time.Minute
)

// direct is the datapath for TCP by sockets of the container's namespace: one that is bound to the client's address connects to
// the server, and splice(2) moves the data between it and the client's socket.
type direct struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	get    getSocket
	routes *netlink.Handle // of the namespace; nil in tests
	pool   *netns.Pool     // nil in tests
	loop   *splice.Loop
	group  *spin.Group
	wg     sync.WaitGroup // accept loops

	mu      sync.Mutex
	child   netip.Addr             // guarded by mu
	gateway map[bool]netip.Addr    // by whether it is IPv4; guarded by mu
	open    []*listener            // guarded by mu
	dials   map[*dialling]struct{} // guarded by mu; nil when closed
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
		return nil, fmt.Errorf("ask the network namespace %s for its routes: %w", path, err)
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
	d := &direct{log: log, get: get, child: child, dials: map[*dialling]struct{}{}, group: spin.NewGroup()}
	var err error
	if d.loop, err = splice.NewLoop(log, d.group); err != nil {
		d.group.Close()
		return nil, err
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d, nil
}

// findGateways looks up the gateways of the namespace's default routes, which stand for clients whose own address the server
// cannot see. It is called with mu held, or before another goroutine has d.
func (d *direct) findGateways() {
	d.gateway = map[bool]netip.Addr{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := d.routes.RouteList(nil, family)
		if err != nil {
			continue
		}
		for _, r := range routes {
			a, ok := netip.AddrFromSlice(r.Gw)
			if a = a.Unmap(); ok && (r.Dst == nil || r.Dst.IP.IsUnspecified()) && !a.IsLinkLocalUnicast() {
				d.gateway[a.Is4()] = a
				break
			}
		}
	}
}

func (d *direct) setChild(a netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.child = a
	if d.routes != nil {
		d.findGateways()
	}
	return nil
}

// ends returns the addresses of a connection inside: src, which the server sees as its client, and the server's. With an invalid
// src the kernel chooses.
func (d *direct) ends(client netip.AddrPort, port uint16) (src, dst netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dst = inContainer(d.child, port)
	switch a := client.Addr(); {
	case a.Is4() == dst.Addr().Is4() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast():
		return client, dst
	case d.gateway[dst.Addr().Is4()].IsValid():
		return netip.AddrPortFrom(d.gateway[dst.Addr().Is4()], client.Port()), dst
	}
	return netip.AddrPort{}, dst
}

func (d *direct) close() {
	d.cancel()
	d.mu.Lock()
	open, dials := d.open, d.dials
	d.open, d.dials = nil, nil
	d.mu.Unlock()
	for _, l := range open {
		l.close()
	}
	d.wg.Wait()
	for q := range dials {
		q.drop(nil)
		rawsock.Reset(q.host)
	}
	d.loop.Close()
	d.group.Close()
	if d.pool != nil {
		d.pool.Close()
		d.routes.Close()
	}
}

// listener is one listening socket of the host.
type listener struct {
	d    *direct
	f    *os.File
	port Port

	member *spin.Member

	row        atomic.Int32 // clients connected by plain sockets since the last one connected by a transparent socket
	plainUntil time.Time    // guarded by d.mu
}

func (d *direct) listen(p Port, addr netip.AddrPort) error {
	tcp, err := listenTCP(addr)
	if err != nil {
		return err
	}
	defer tcp.Close()
	l := &listener{d: d, port: p}
	// Not by package net, which would set the keep-alive interval of each connection. The copy shares the socket.
	if l.f, err = tcp.File(); err != nil {
		return err
	}
	if l.member, err = d.group.NewBlockingMember(l.f, l.turn); err == nil { // it may wait for a socket
		rawsock.NoDelay(l.member.FD()) // what it accepts inherits that
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil || d.dials == nil {
		l.f.Close()
		return errors.Join(err, net.ErrClosed)
	}
	d.open = append(d.open, l)
	d.wg.Go(l.run)
	return nil
}

func (l *listener) close() {
	l.member.Leave()
	_ = l.f.Close()
}

func (l *listener) run() { _ = l.member.Run() }

// turn takes one client.
func (l *listener) turn() spin.Result {
	fd, client, err := rawsock.Accept(l.member.FD())
	switch {
	case err == unix.EAGAIN:
		return spin.Idle
	case err != nil:
		l.d.log.Warn("connection not accepted", "port", l.port.HostPort, "err", err)
		l.d.pause(acceptPause)
	default:
		l.serve(fd, client)
	}
	return spin.Progress
}

func (d *direct) pause(t time.Duration) {
	select {
	case <-time.After(t):
	case <-d.ctx.Done():
	}
}
