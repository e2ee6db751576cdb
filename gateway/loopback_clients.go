package gateway

import (
	"context"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder/loopback"
	"rootlessnet/netns"
)

// openLoopbackClients has clients of published ports that arrive by the host's loopback connected to the loopback inside the
// namespace, if the plan has LoopbackToLoopback.
func (g *Gateway) openLoopbackClients() error {
	p := g.cfg.Plan
	if !p.LoopbackToLoopback {
		return nil
	}
	if g.ns == nil {
		return errors.New("loopback to loopback: the namespace is not entered")
	}
	pool, err := g.ns.SocketPool(context.Background(), netns.PoolOptions{IPv6: p.Addrs.Gateway6.IsValid(), UDP: true})
	if err != nil {
		return err
	}
	if g.loopbackClients, err = loopback.New(g.forwarder, guestID, pool); err != nil {
		pool.Close()
	}
	return err
}

// listenLoopback gives a published UDP port a second socket, which the kernel prefers for datagrams that arrive by lo. Both
// sockets have SO_REUSEADDR set while the second is bound, and cleared afterwards so that no other program can bind the port.
func (b *bound) listenLoopback(l *loopback.Relay) (*loopback.Port, error) {
	rc, err := b.udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	var f *os.File
	var serr error
	err = rc.Control(func(fd uintptr) {
		if serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); serr == nil {
			f, serr = loSocket(netip.AddrPortFrom(b.HostIP, b.HostPort))
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
		}
	})
	if err = errors.Join(err, serr); err != nil {
		return nil, err
	}
	return l.Listen(f, b.GuestPort)
}
