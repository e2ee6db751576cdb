package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/netns"
)

// LoopbackForward is a port of the namespace's own loopback that leads to one of the host's. It opens that port, and no
// other, to whatever is in the namespace. There it is heard on the addresses of lo, which are all of 127/8 and ::1; the host's
// server is looked for on the loopback address of the client's family, and then on the other.
type LoopbackForward struct {
	Proto    string // "tcp" or "udp"
	Port     uint16 // inside
	HostPort uint16
}

func (f LoopbackForward) String() string {
	return fmt.Sprintf("%d:%d/%s", f.Port, f.HostPort, f.Proto)
}

// loopbacks are a sandbox's LoopbackForwards. Safe for concurrent use; its zero value is ready.
type loopbacks struct {
	change sync.Mutex // held while some are added or removed

	mu     sync.Mutex
	relay  *forwarder.Loopback                         // guarded by mu; nil until the first
	open   map[LoopbackForward]*forwarder.LoopbackPort // guarded by mu
	closed bool                                        // guarded by mu
}

// AddLoopbackForwards opens what can be opened of list, and says what that is; err is the first failure, which wraps the
// errno of bind(2). Privileged ports need no privilege: the namespace is asked, not the host. A sandbox that was made of a
// TAP has none.
func (b *Sandbox) AddLoopbackForwards(list ...LoopbackForward) (opened []LoopbackForward, err error) {
	return b.s.loopbacks.add(b.s, list)
}

// RemoveLoopbackForwards closes those for which want says so, and returns them. Connections go on.
func (b *Sandbox) RemoveLoopbackForwards(want func(LoopbackForward) bool) []LoopbackForward {
	return b.s.loopbacks.remove(want)
}

// LoopbackForwards lists what is open now.
func (b *Sandbox) LoopbackForwards() (list []LoopbackForward) {
	l := &b.s.loopbacks
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.open {
		list = append(list, f)
	}
	return list
}

func (l *loopbacks) add(s *sandbox, list []LoopbackForward) (opened []LoopbackForward, err error) {
	if s.ns == nil {
		return nil, errors.New("the namespace is not entered")
	}
	for _, f := range list {
		if f.Proto != "tcp" && f.Proto != "udp" || f.Port == 0 || f.HostPort == 0 {
			return nil, usage("LoopbackForward", "invalid port: %s", f)
		}
	}
	l.change.Lock()
	defer l.change.Unlock()
	relay, err := l.start(s)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	room := loopbackRoom() - len(l.open)
	l.mu.Unlock()
	fail := func(f LoopbackForward, ferr error) {
		if err == nil {
			err = fmt.Errorf("port %s of the namespace's loopback: %w", f, ferr)
		}
	}
	for _, proto := range []string{"tcp", "udp"} {
		var some []LoopbackForward
		var ports []uint16
		for _, f := range list {
			switch {
			case f.Proto != proto:
			case len(some) >= room:
				fail(f, unix.EMFILE)
			default:
				some, ports = append(some, f), append(ports, f.Port)
			}
		}
		room -= len(some)
		files, errs, lerr := s.ns.Listen(context.Background(), proto, ports)
		if lerr != nil {
			return opened, lerr
		}
		for i, f := range some {
			if errs[i] != nil {
				fail(f, errs[i])
				continue
			}
			p, perr := relay.Listen(files[i], f.HostPort)
			if perr != nil {
				fail(f, perr)
				continue
			}
			l.mu.Lock()
			l.open[f] = p
			l.mu.Unlock()
			opened = append(opened, f)
		}
	}
	return opened, err
}

// loopbackShare: the descriptors that may be listeners are one of so many parts of RLIMIT_NOFILE. The others are for
// connections.
const loopbackShare = 2

func loopbackRoom() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil || lim.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(lim.Cur) / loopbackShare
}

// start makes the relay, once.
func (l *loopbacks) start(s *sandbox) (*forwarder.Loopback, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	if l.relay == nil {
		relay, err := forwarder.NewLoopback(nil, s.net.spin, s.log)
		if err != nil {
			return nil, err
		}
		l.relay, l.open = relay, map[LoopbackForward]*forwarder.LoopbackPort{}
	}
	return l.relay, nil
}

func (l *loopbacks) remove(want func(LoopbackForward) bool) (removed []LoopbackForward) {
	l.change.Lock()
	defer l.change.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for f, p := range l.open {
		if want(f) {
			p.Close()
			delete(l.open, f)
			removed = append(removed, f)
		}
	}
	return removed
}

// close ends all of them, and their connections. It waits for a request that is under way: the namespace is closed first.
func (l *loopbacks) close() {
	l.mu.Lock()
	relay := l.relay
	l.closed = true
	l.mu.Unlock()
	if relay != nil {
		relay.Close()
	}
}

// stats is what there is to count; zero where nothing is forwarded.
func (l *loopbacks) stats() (st forwarder.LoopbackStats) {
	l.mu.Lock()
	relay := l.relay
	l.mu.Unlock()
	if relay != nil {
		st = relay.Stats()
	}
	return st
}

// openLoopback has clients of published ports that come by the host's loopback served from the namespace's own.
func (g *gateway) openLoopback() error {
	s := g.s
	if !s.plan.loopbackToLoopback {
		return nil
	}
	if s.ns == nil {
		return errors.New("loopback to loopback: the namespace is not entered")
	}
	mint, err := s.ns.SocketPool(context.Background(), netns.PoolOptions{IPv6: s.plan.addrs.gateway6.IsValid(), UDP: true})
	if err != nil {
		return err
	}
	if g.loopback, err = forwarder.NewLoopback(mint, g.spin, s.log); err != nil {
		mint.Close()
	}
	return err
}

// listenLoopback gives a published UDP port a second socket, which the kernel prefers for what comes by lo. Both have to
// allow it while it is bound, and nobody may join them afterwards.
func (b *bound) listenLoopback(l *forwarder.Loopback) (*forwarder.LoopbackPort, error) {
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

// loSocket is bound to an address, and to lo.
func loSocket(a netip.AddrPort) (f *os.File, err error) {
	family := unix.AF_INET
	var sa unix.Sockaddr
	if a.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if family == unix.AF_INET6 {
		if err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, err
		}
	}
	if err = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
		return nil, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err = unix.Bind(fd, sa); err != nil {
		return nil, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "udp on lo"), nil
}
