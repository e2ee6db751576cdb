package rootlessport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"rootlessnet/internal/bindaddr"
	"rootlessnet/internal/rawsock"
)

const (
	// dialTimeout bounds a connect to the server. Within one machine, a server that takes longer will not answer at all.
	dialTimeout = 10 * time.Second
	// acceptPause is the pause after a failed accept, which mostly means that the limit of open files is reached.
	acceptPause = 100 * time.Millisecond
)

// dialer makes connections inside the namespace.
type dialer interface {
	dial(ctx context.Context, proto string, to netip.AddrPort) (net.Conn, error)
}

// relay is the datapath relay: it copies the data between the client's socket and a socket inside.
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

func (r *relay) listen(p Port, addr netip.AddrPort) error {
	if p.Proto == "udp" {
		c, err := net.ListenUDP(bindaddr.Network("udp", addr), net.UDPAddrFromAddrPort(addr))
		if err != nil {
			return nameProto(err, "udp")
		}
		return r.start(c, func() { r.serveUDP(c, p) })
	}
	l, err := listenTCP(addr)
	if err != nil {
		return err
	}
	return r.start(l, func() { r.serveTCP(l, p) })
}

// start runs serve in a goroutine and then closes c; close closes c earlier.
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

// hold registers c for close, or returns false after close.
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

// setChild implements datapath. Existing connections and flows keep the old address.
func (r *relay) setChild(a netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.child = a
	return nil
}

// target is the address in the container that a port is forwarded to now.
func (r *relay) target(port uint16) netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return inContainer(r.child, port)
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

// connect connects one client to the server and copies the data in both directions.
func (r *relay) connect(client *net.TCPConn, p Port) {
	ctx, cancel := context.WithTimeout(r.ctx, dialTimeout)
	conn, err := r.dialer.dial(ctx, "tcp", r.target(p.ChildPort))
	cancel()
	if err != nil {
		r.log.Debug("the connection to the container failed", "port", p.ChildPort, "err", err)
		_ = client.SetLinger(0) // so that closing it sends RST
		return
	}
	server := conn.(*net.TCPConn)
	if !r.hold(server) {
		_ = server.Close()
		return
	}
	defer r.drop(server)
	_ = server.SetKeepAlive(true) // as on the accepted socket: to detect a peer that does not answer any more
	var pumps sync.WaitGroup
	var toServer, toClient atomic.Bool // whether FIN was passed on
	pumps.Go(func() { pump(server, client, &toServer, &toClient) })
	pumps.Go(func() { pump(client, server, &toClient, &toServer) })
	pumps.Wait()
}

// pump copies the data of one direction, then passes the FIN on and sets passed. An error resets both connections. back is the
// flag of the other direction.
func pump(to, from *net.TCPConn, passed, back *atomic.Bool) {
	_, err := io.Copy(to, from) // by splice(2)
	if err != nil || closed(from) && !back.Load() {
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

// closed reports whether the kernel has closed the connection, by a RST or after both FINs.
func closed(c *net.TCPConn) (is bool) {
	rc, err := c.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) { is = rawsock.Closed(fd) })
	}
	return is || err != nil
}
