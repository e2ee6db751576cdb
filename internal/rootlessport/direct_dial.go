package rootlessport

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/breaker"
	"rootlessnet/internal/inbound"
	"rootlessnet/internal/rawsock"
	"rootlessnet/internal/spin"
)

const (
	// poolPause is the time between two attempts to take a socket from an empty pool, for poolTimeout in all; a batch of
	// sockets arrives in a fraction of it.
	poolPause   = time.Millisecond
	poolTimeout = 500 * time.Millisecond
	// plainAfter is how long a transparent socket waits for an answer before a plain socket is tried as well: a little longer than
	// the kernel's first retransmission timeout of a SYN (1 s, RFC 6298 section 2), so that a server that is busy for a moment
	// sees its client's address.
	plainAfter = 1200 * time.Millisecond
)

// handler serves the clients of one listening socket of the host.
type handler struct {
	d    *direct
	port Port
	// transparent is open while only plain sockets reach the server.
	transparent *breaker.Breaker
}

// Ready implements inbound.Handler.
func (h *handler) Ready() bool { return true }

// AcceptFailed implements inbound.Handler.
func (h *handler) AcceptFailed(err error) {
	h.d.log.Warn("connection not accepted", "port", h.port.HostPort, "err", err)
}

// Serve implements inbound.Handler: it connects the client to the server inside. If that refuses, the client is reset.
func (h *handler) Serve(client int, addr netip.AddrPort) spin.Result {
	d := h.d
	src, dst := d.ends(addr, h.port.ChildPort)
	plain := h.transparent.Open()
	fd, done, err := d.connect(src, dst, plain)
	if (err == unix.EADDRNOTAVAIL || err == unix.EADDRINUSE) && src.IsValid() {
		// One client may use one source port for two published ports, and two clients with the gateway's address the same port.
		fd, done, err = d.connect(netip.AddrPortFrom(src.Addr(), 0), dst, plain)
	}
	switch {
	case err != nil:
		d.log.Debug("the connection to the container failed", "port", h.port.HostPort, "err", err)
		rawsock.Reset(client)
	case done:
		if !plain {
			h.transparent.Succeed()
		}
		d.join(client, fd)
	default:
		h.wait(client, fd, dst, plain)
	}
	return spin.Progress
}

// connect starts a connection inside: from src, or from an address that the kernel chooses if src is invalid or the socket plain.
// done means that it is established already, which is nearly always so.
func (d *direct) connect(src, dst netip.AddrPort, plain bool) (fd int, done bool, err error) {
	for end := time.Now().Add(poolTimeout); ; d.pause(poolPause) {
		fd, err = d.get(dst.Addr().Is6(), plain)
		if err == nil {
			break
		}
		if d.ctx.Err() != nil || time.Now().After(end) {
			return -1, false, err
		}
	}
	if plain {
		rawsock.NoDelay(fd)
		src = netip.AddrPort{}
	}
	done, err = rawsock.ConnectFrom(fd, src, dst)
	if err == nil && done && (!src.IsValid() || src.Addr() == dst.Addr()) && rawsock.IsSelf(fd, dst) {
		err = unix.ECONNREFUSED // a TCP self-connect: no server listens
	}
	if err != nil {
		rawsock.Reset(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// join splices the data of two connected sockets, which the loop then owns.
func (d *direct) join(client, server int) {
	if _, err := d.loop.Join(client, server, nil); err != nil {
		rawsock.Reset(client)
		rawsock.Reset(server)
	}
}

// wait handles a client whose connection inside is not established at once. It waits for fd, and after plainAfter for a plain socket
// as well, unless fd is one. The first result decides; without a result within dialTimeout the client is reset.
func (h *handler) wait(client, fd int, dst netip.AddrPort, plain bool) {
	d := h.d
	c := &inbound.Client{Socket: client}
	transparent := fd
	if plain {
		transparent = -1
	}
	c.Connected = func(fd int, _ netip.AddrPort) {
		if fd == transparent {
			h.transparent.Succeed()
		} else if !plain {
			h.plainConnected()
		}
		d.join(client, fd)
	}
	c.Failed = func(netip.AddrPort, error) { rawsock.Reset(client) }
	timeOut := func() {
		if d.waiting.Take(c) {
			rawsock.Reset(client)
		}
	}
	limit := plainAfter
	if c.Late = func() { h.retryPlain(c, dst, timeOut) }; plain {
		limit, c.Late = dialTimeout, timeOut
	}
	if d.waiting.Wait(c, fd, dst, limit) != nil {
		rawsock.Reset(client)
	}
}

// retryPlain tries a plain socket as well if the transparent one has no answer. Rules in the container (its own DNAT, marks) may
// route answers with our mark elsewhere, or the client's address may be unreachable from it. A plain socket is routed like any other
// socket of the container.
func (h *handler) retryPlain(c *inbound.Client, dst netip.AddrPort, timeOut func()) {
	d := h.d
	fd, done, err := d.connect(netip.AddrPort{}, dst, true)
	switch {
	case err != nil:
		timeOut()
	case !done:
		c.Late = timeOut
		d.waiting.Add(c, fd, dst, dialTimeout)
	case d.waiting.Take(c):
		h.plainConnected()
		d.join(c.Socket, fd)
	default: // the transparent socket has connected meanwhile
		rawsock.Reset(fd)
	}
}

// plainConnected records that a plain socket has connected where a transparent one did not.
func (h *handler) plainConnected() {
	if h.transparent.Fail() {
		h.d.log.Info("the server of a published port does not see the addresses of its clients, because transparent sockets get no answers from it: check the firewall and routing rules in the container",
			"port", h.port.HostPort, "retry_after", plainFor)
	}
}
