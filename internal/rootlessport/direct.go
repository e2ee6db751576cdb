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
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/splice"
	"rootlessnet/userns"
)

// stockPause is how long a client waits for a socket when all in stock are used up; a batch takes a fraction of it.
const stockPause = time.Millisecond

// direct is the way in by the kernel, for TCP: a socket of the container's namespace that has the client's own address
// connects to the server there, and what the two sockets say is moved from one to the other by splice(2). Neither a
// helper nor a bridge is on the way.
type direct struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	get    func(ipv6 bool) (fd int, err error) // a transparent socket of the namespace; userns.ErrNoSocket for the moment
	routes *netlink.Handle                     // of the namespace; nil in tests
	mint   *userns.Minter                      // nil in tests
	loop   *splice.Loop
	group  *spin.Group
	wg     sync.WaitGroup // accept loops

	mu      sync.Mutex
	child   netip.Addr             // guarded by mu
	gateway map[bool]netip.Addr    // by whether it is IPv4; guarded by mu
	open    []*listener            // guarded by mu
	dials   map[*dialling]struct{} // guarded by mu; nil when closed
}

func newDirect(path string, child netip.Addr, log *slog.Logger) (*direct, error) {
	var routes *netlink.Handle
	err := inNamespace(path, func() (err error) {
		routes, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask the network namespace %s for its routes: %w", path, err)
	}
	mint, err := userns.MintAt(path)
	if err != nil {
		routes.Close()
		return nil, err
	}
	d, err := startDirect(func(ipv6 bool) (int, error) { return mint.Get(ipv6, false) }, child, log)
	if err != nil {
		mint.Close()
		routes.Close()
		return nil, err
	}
	d.routes, d.mint = routes, mint
	d.findGateways()
	return d, nil
}

func startDirect(get func(ipv6 bool) (int, error), child netip.Addr, log *slog.Logger) (*direct, error) {
	d := &direct{log: log, get: get, child: child, dials: map[*dialling]struct{}{}, group: spin.NewGroup()}
	var err error
	if d.loop, err = splice.NewLoop(log, d.group); err != nil {
		d.group.Close()
		return nil, err
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d, nil
}

// findGateways asks for whom clients are shown as that cannot be shown as themselves. It is called with mu held, or before
// there is another goroutine.
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

// ends are a connection's inside: whose address the server sees, and where it is. A zero source is for the kernel to choose.
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
		q.timer.Stop()
		d.loop.Unwatch(q.inside, q.token)
		q.reset()
	}
	d.loop.Close()
	d.group.Close()
	if d.mint != nil {
		d.mint.Close()
		d.routes.Close()
	}
}

// listener is one listening socket of the host.
type listener struct {
	d    *direct
	f    *os.File
	rc   syscall.RawConn
	port uint16 // in the container
	spin spin.Member
}

func (d *direct) listen(p Port, addr netip.AddrPort) error {
	tcp, err := listenTCP(addr)
	if err != nil {
		return err
	}
	defer tcp.Close()
	l := &listener{d: d, port: p.ChildPort, spin: d.group.Member()}
	// A listener of package net gives each connection a keep-alive pace of its own. The copy shares the socket.
	if l.f, err = tcp.File(); err != nil {
		return err
	}
	if l.rc, err = l.f.SyscallConn(); err == nil {
		err = l.rc.Control(func(fd uintptr) {
			rawsock.NoDelay(int(fd)) // what it accepts inherits that
			d.group.Add(int(fd))
		})
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
	_ = l.rc.Control(func(fd uintptr) { l.d.group.Remove(int(fd)) })
	_ = l.f.Close()
}

func (l *listener) run() {
	for {
		fd, client, err := l.accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.d.log.Warn("connection not accepted", "port", l.port, "err", err)
			l.d.pause(acceptPause)
		default:
			l.d.serve(fd, client, l.port)
		}
	}
}

// accept waits for a client; net.ErrClosed means that the listener was closed.
func (l *listener) accept() (fd int, client netip.AddrPort, err error) {
	closed := l.rc.Read(func(from uintptr) bool {
		fd, client, err = rawsock.Accept(int(from))
		if err == unix.EAGAIN && l.spin.Wait(nil) {
			fd, client, err = rawsock.Accept(int(from))
		}
		return err != unix.EAGAIN
	})
	l.spin.Begin()
	if closed != nil { // there is no deadline
		return -1, netip.AddrPort{}, net.ErrClosed
	}
	return fd, client, err
}

func (d *direct) pause(t time.Duration) {
	select {
	case <-time.After(t):
	case <-d.ctx.Done():
	}
}

// serve connects a client, whose socket is host, to the server inside. Refused inside is a reset outside.
func (d *direct) serve(host int, client netip.AddrPort, port uint16) {
	src, dst := d.ends(client, port)
	inside, done, err := d.connect(src, dst)
	if (err == unix.EADDRNOTAVAIL || err == unix.EADDRINUSE) && src.IsValid() {
		// A client may use one port for two that are published, and two that are shown as the gateway the same one.
		inside, done, err = d.connect(netip.AddrPortFrom(src.Addr(), 0), dst)
	}
	switch {
	case err != nil:
		d.log.Debug("the container did not accept", "port", port, "err", err)
		rawsock.Reset(host)
	case done:
		d.join(host, inside)
	default:
		d.wait(host, inside, dst)
	}
}

// connect starts a connection inside. Nearly always it ends at once.
func (d *direct) connect(src, dst netip.AddrPort) (fd int, done bool, err error) {
	for end := time.Now().Add(dialTimeout); ; d.pause(stockPause) {
		fd, err = d.get(dst.Addr().Is6())
		if err == nil {
			break
		}
		if d.ctx.Err() != nil || time.Now().After(end) {
			return -1, false, err
		}
	}
	if src.IsValid() {
		err = rawsock.Bind(fd, src)
	}
	if err == nil {
		if done, err = rawsock.ConnectState(fd, dst); err == nil && !done {
			done, err = rawsock.ConnectState(fd, dst)
		}
	}
	if err == nil && done && !src.IsValid() && rawsock.LocalAddr(fd) == dst { // with itself, as nobody listens (RFC 9293 3.5)
		err = unix.ECONNREFUSED
	}
	if err != nil {
		rawsock.Reset(fd)
		return -1, false, err
	}
	return fd, done, nil
}

func (d *direct) join(host, inside int) {
	if _, err := d.loop.Join(host, inside, nil); err != nil {
		rawsock.Reset(host)
		rawsock.Reset(inside)
	}
}

// dialling is a connect that takes longer: the server's backlog is full, or a rule inside drops what comes.
type dialling struct {
	d            *direct
	host, inside int
	dst          netip.AddrPort
	token        int32
	timer        *time.Timer
}

func (d *direct) wait(host, inside int, dst netip.AddrPort) {
	q := &dialling{d: d, host: host, inside: inside, dst: dst}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := error(net.ErrClosed)
	if d.dials != nil {
		q.token, err = d.loop.Watch(inside, unix.EPOLLOUT|unix.EPOLLONESHOT, q)
	}
	if err != nil {
		q.reset()
		return
	}
	d.dials[q] = struct{}{}
	q.timer = time.AfterFunc(dialTimeout, q.late)
}

func (q *dialling) reset() {
	rawsock.Reset(q.host)
	rawsock.Reset(q.inside)
}

// late is called when the container has not answered in time.
func (q *dialling) late() {
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	if _, there := q.d.dials[q]; there {
		q.end()
		q.reset()
	}
}

// Ready is called when the connect has ended.
func (q *dialling) Ready(uint32) {
	d := q.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, there := d.dials[q]; !there {
		return
	}
	switch done, err := rawsock.ConnectState(q.inside, q.dst); {
	case err != nil:
		q.end()
		q.reset()
	case !done:
		_ = d.loop.Rearm(q.inside, unix.EPOLLOUT|unix.EPOLLONESHOT, q.token)
	default:
		q.end()
		d.join(q.host, q.inside)
	}
}

// end forgets the attempt. d.mu is held.
func (q *dialling) end() {
	q.timer.Stop()
	q.d.loop.Unwatch(q.inside, q.token)
	delete(q.d.dials, q)
}
