package loopback

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
	"rootlessnet/splice"
)

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

const (
	// An empty pool is filled again within a millisecond, if the process that fills it is scheduled.
	poolRetry = 5 * time.Millisecond
	poolTries = 400
)

// Serve implements forwarder.ClientServer: it takes the clients of published ports that connect on the host's loopback, for
// servers on the guest's loopback.
func (l *Relay) Serve(c *forwarder.Client) (spin.Result, bool) {
	to := c.Port.Target()
	if !c.Addr.Addr().IsLoopback() || to.Addr.Addr().IsValid() || to.Endpoint != l.ep {
		return spin.Idle, false
	}
	l.f.Budget.TakeAnyway(fdbudget.Relay, descriptors)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.resetClient(c.FD)
	} else {
		l.serveLocked(c.FD, c.Addr, to.Addr.Port(), poolTries)
	}
	return spin.Progress, true
}

// loopbacks are a port's two addresses, the client's family first.
func loopbacks(ipv6 bool, port uint16) (dst, alt netip.AddrPort) {
	dst, alt = netip.AddrPortFrom(loopback4, port), netip.AddrPortFrom(loopback6, port)
	if ipv6 {
		return alt, dst
	}
	return dst, alt
}

// serveLocked connects the client, now or when the pool has a socket for it.
func (l *Relay) serveLocked(client int, from netip.AddrPort, to uint16, tries int) {
	rawsock.NoDelay(client)
	dst, alt := loopbacks(from.Addr().Is6(), to)
	if l.dialLocked(client, from, dst, alt) {
		return
	}
	if tries == 0 {
		l.refuse(client)
		return
	}
	w := &wait{client: client}
	l.waits[w] = struct{}{}
	w.timer = time.AfterFunc(poolRetry, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, waits := l.waits[w]; waits {
			delete(l.waits, w)
			l.serveLocked(client, from, to, tries-1)
		}
	})
}

// wait is a client for which the pool had no socket.
type wait struct {
	client int
	timer  *time.Timer
}

// dialLocked connects to dst, and to alt where nothing listens on that. It returns false if the pool
// has no socket at the moment; the client then still belongs to the caller.
func (l *Relay) dialLocked(client int, from, dst, alt netip.AddrPort) bool {
	for {
		fd, done, err := l.connect(dst)
		switch {
		case err == errPoolEmpty:
			return false
		case err == nil && done:
			l.joinLocked(client, fd, from, dst)
			return true
		case err == nil:
			if err = l.waitLocked(client, fd, from, dst, alt); err == nil {
				return true
			}
		}
		if !alt.IsValid() || forwarder.OutOfResources(err) {
			l.refuse(client)
			return true
		}
		dst, alt = alt, netip.AddrPort{}
	}
}

// waitLocked waits for a connect that did not complete at once, because the server's backlog is full.
func (l *Relay) waitLocked(client, fd int, from, dst, alt netip.AddrPort) error {
	c := &inbound.Client{Socket: client}
	c.Connected = func(fd int, dst netip.AddrPort) {
		l.mu.Lock()
		defer l.mu.Unlock()
		forwarder.QueueErrors(fd, dst.Addr().Is4(), 0)
		l.joinLocked(client, fd, from, dst)
	}
	c.Failed = func(netip.AddrPort, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closed || !alt.IsValid() || !l.dialLocked(client, from, alt, netip.AddrPort{}) {
			l.refuse(client)
		}
	}
	return l.clients.Wait(c, fd, dst, 0)
}

// errPoolEmpty means that there is no socket at the moment.
var errPoolEmpty = errors.New("the pool of sockets is empty")

// connect begins a connection to a server.
func (l *Relay) connect(dst netip.AddrPort) (fd int, done bool, err error) {
	if l.pool == nil {
		return forwarder.StartDial(forwarder.Egress{}, dst, 0)
	}
	if fd, err = l.pool.Get(dst.Addr().Is6(), false); err != nil {
		return -1, false, errPoolEmpty
	}
	if done, err = rawsock.ConnectFrom(fd, netip.AddrPort{}, dst); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// joint is one joined connection.
type joint struct {
	flow.Entry
	pair *splice.Pair // the client's socket first
	in   bool         // the server is in the guest's namespace
}

// Counters implements flow.Carrier.
func (j *joint) Counters() flow.Counters {
	c := flow.Counters{State: flow.Established}
	if j.pair.HalfClosed() {
		c.State = flow.HalfClosed
	}
	toClient, toServer := j.pair.Moved()
	c.BytesToHost, c.BytesToGuest = toServer, toClient
	if j.in {
		c.BytesToHost, c.BytesToGuest = toClient, toServer
	}
	return c
}

// Kill implements flow.Carrier.
func (j *joint) Kill() { j.pair.Kill() }

func (l *Relay) joinLocked(client, server int, from, dst netip.AddrPort) {
	if l.closed {
		rawsock.Reset(server)
		l.resetClient(client)
		return
	}
	if l.connectedToItself(server, dst) { // nothing listens there: the kernel has chosen that port for our own end, and connected the socket to itself
		rawsock.Reset(server)
		l.refuse(client)
		return
	}
	rawsock.NoDelay(server)
	var at netip.AddrPort // what the client was sent to; of an inbound flow the table has the server's address instead
	if l.pool == nil {
		at = rawsock.LocalAddr(client)
	}
	j := &joint{Entry: l.entry(flow.TCP, from, at, dst), in: l.pool != nil}
	var err error
	j.pair, err = l.loop.Join(client, server, func() { l.ended(j) })
	if err != nil { // no memory, or closed
		rawsock.Reset(server)
		l.resetClient(client)
		return
	}
	l.joined[j] = struct{}{}
	l.f.Flows.Add(&j.Entry, j)
	l.stats.Connections++
}

// connectedToItself says whether a socket that was connected to dst is connected to itself.
func (l *Relay) connectedToItself(server int, dst netip.AddrPort) bool {
	if l.pool == nil {
		return forwarder.ConnectedToItself(server, dst)
	}
	return rawsock.IsSelf(server, dst) // the other namespace may choose from another range of ports
}

// ended is called by the loop when a pair has ended.
func (l *Relay) ended(j *joint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.joined, j)
	l.f.Flows.Remove(&j.Entry, j.Counters())
	l.give(descriptors)
}

// entry describes a flow from a client that was sent to the address at.
func (l *Relay) entry(proto flow.Proto, from, at, server netip.AddrPort) flow.Entry {
	e := flow.Entry{Key: flow.Key{Endpoint: l.ep, Proto: proto, Src: from, Dst: at}, Datapath: flow.Loopback, Peer: server}
	if l.pool != nil {
		e.Direction, e.Key.Dst, e.Peer = flow.Inbound, server, from
	}
	return e
}
