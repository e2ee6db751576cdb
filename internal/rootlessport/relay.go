package rootlessport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rootlessnet/internal/tcpstate"
)

const (
	// dialTimeout is how long the container may take to accept: inside one machine, anything longer is a server that
	// does not.
	dialTimeout = 10 * time.Second
	// acceptPause is how long nothing is accepted after that failed, which it does for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// dialer makes connections inside the namespace.
type dialer interface {
	dial(ctx context.Context, proto string, to netip.AddrPort) (net.Conn, error)
}

// relay is the way in without an engine.
type relay struct {
	dialer dialer
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	child netip.Addr             // guarded by mu
	open  map[io.Closer]struct{} // listeners and connections; guarded by mu; nil when closed
}

func newRelay(d dialer, child netip.Addr, log *slog.Logger) *relay {
	ctx, cancel := context.WithCancel(context.Background())
	return &relay{dialer: d, log: log, ctx: ctx, cancel: cancel, child: child, open: map[io.Closer]struct{}{}}
}

// publish opens all ports or fails; the caller then closes the relay.
func (r *relay) publish(ports []Port) error {
	for _, p := range ports {
		opened := 0
		for _, addr := range p.Listens() {
			err := r.listen(p, addr)
			if err != nil && !p.Host.IsValid() && addr.Addr().Is6() && noIPv6(err) {
				continue // a host without IPv6: the other family is all there is
			}
			if err != nil {
				return err
			}
			opened++
		}
		if opened == 0 {
			return fmt.Errorf("port %d/%s: no address to listen on", p.HostPort, p.Proto)
		}
	}
	return nil
}

func noIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

func (r *relay) listen(p Port, addr netip.AddrPort) error {
	network := p.Proto + "6" // an IPv6 socket of this name is for IPv6 only
	if addr.Addr().Is4() {
		network = p.Proto + "4"
	}
	if p.Proto == "udp" {
		c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			return nameProto(err, p.Proto)
		}
		return r.start(c, func() { r.serveUDP(c, p) })
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // its sockets do not splice
	l, err := lc.Listen(context.Background(), network, addr.String())
	if err != nil {
		return nameProto(err, p.Proto)
	}
	return r.start(l, func() { r.serveTCP(l.(*net.TCPListener), p) })
}

// nameProto has an error say "listen tcp", as Podman's users know it, rather than "listen tcp4".
func nameProto(err error, proto string) error {
	var op *net.OpError
	if errors.As(err, &op) {
		op.Net = proto
	}
	return err
}

// start runs serve for a socket that close closes.
func (r *relay) start(c io.Closer, serve func()) error {
	if !r.hold(c) {
		_ = c.Close()
		return net.ErrClosed
	}
	r.wg.Go(func() {
		defer r.drop(c)
		serve()
	})
	return nil
}

func (r *relay) hold(c io.Closer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		return false
	}
	r.open[c] = struct{}{}
	return true
}

func (r *relay) drop(c io.Closer) {
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
	_ = c.Close()
}

// setChild leads new connections and flows to another address.
func (r *relay) setChild(a netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.child = a
	return nil
}

// target is where a port leads now. Without an address of the container the namespace's own loopback is meant.
func (r *relay) target(port uint16) netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.child.IsValid() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}
	return netip.AddrPortFrom(r.child, port)
}

func (r *relay) close() {
	r.cancel()
	r.mu.Lock()
	open := r.open
	r.open = nil
	r.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
	r.wg.Wait()
}

func (r *relay) serveTCP(l *net.TCPListener, p Port) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.log.Warn("connection not accepted", "port", p.HostPort, "err", err)
			time.Sleep(acceptPause)
			continue
		}
		if err := r.start(c, func() { r.connect(c, p) }); err != nil {
			return
		}
	}
}

// connect continues one connection.
func (r *relay) connect(client *net.TCPConn, p Port) {
	ctx, cancel := context.WithTimeout(r.ctx, dialTimeout)
	conn, err := r.dialer.dial(ctx, "tcp", r.target(p.ChildPort))
	cancel()
	if err != nil {
		r.log.Debug("the container did not accept", "port", p.ChildPort, "err", err)
		_ = client.SetLinger(0) // refused inside is a reset outside
		return
	}
	server := conn.(*net.TCPConn)
	if !r.hold(server) {
		_ = server.Close()
		return
	}
	defer r.drop(server)
	_ = server.SetKeepAlive(true) // as on the accepted side: it tells a peer that has vanished from one that is silent
	var pumps sync.WaitGroup
	var toServer, toClient atomic.Bool // FIN was passed on
	pumps.Go(func() { pump(server, client, &toServer, &toClient) })
	pumps.Go(func() { pump(client, server, &toClient, &toServer) })
	pumps.Wait()
}

// pump moves one direction: bytes, then the end of the stream, which passed tells; an error resets both sides. back is
// the other direction's passed.
func pump(to, from *net.TCPConn, passed, back *atomic.Bool) {
	_, err := io.Copy(to, from) // by splice(2)
	if err != nil || dead(from) && !back.Load() {
		_ = to.SetLinger(0)
		_ = from.SetLinger(0)
		_ = to.Close()
		_ = from.Close()
		return
	}
	passed.Store(true)
	if err := to.CloseWrite(); err != nil {
		_ = from.Close()
	}
}

func dead(c *net.TCPConn) (is bool) {
	rc, err := c.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) { is = tcpstate.Dead(fd) })
	}
	return is || err != nil
}
