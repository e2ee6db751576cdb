package forwarder

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/stack"
)

// guestDial is a connect of a minted socket to the guest that did not end at once.
type guestDial struct {
	r        *kernelRoad
	host, fd int
	flow     stack.Flow
	token    int32
	timer    *time.Timer
	client   netip.AddrPort
	p        *PublishedTCP
}

// serve connects a client of a published port, whose socket is host, to the port inside. false leaves the client to the
// other road, which knows what to do with whatever this one does not: a port that is closed, or that is open only to
// what comes by the uplink; a server of the other family; no minted socket in stock. So does a guest that is late to
// answer, afterwards.
func (r *kernelRoad) serve(host int, client netip.AddrPort, p *PublishedTCP) bool {
	to := p.to
	t := r.t
	now := t.addrs.Load()
	guest, gateway := now.Guest4, now.Gateway4
	if client.Addr().Is6() {
		guest, gateway = now.Guest6, now.Gateway6
	}
	if !guest.IsValid() {
		return false
	}
	beyond := to.Addr().IsValid() && to.Addr() != guest
	if beyond && to.Addr().Is4() != guest.Is4() {
		return false
	}
	r.mu.Lock()
	no := r.closed || r.full() || p.doubt.now() || beyond && !r.forwards()
	r.mu.Unlock()
	if no {
		return false
	}
	if beyond {
		guest = to.Addr()
	}
	f := stack.Flow{Src: t.sourceFor(client, guest, gateway), Dst: netip.AddrPortFrom(guest, to.Port())}
	fd, done, err := r.connect(f, beyond)
	if err == unix.EADDRNOTAVAIL && r.isJoined(f) {
		// A client may use one port for two ports that are published, and two addresses of the host's loopback the same one.
		// The other road does not know of this connection, and would speak in its name.
		f.Src = netip.AddrPortFrom(f.Src.Addr(), 0)
		if fd, done, err = r.connect(f, beyond); err == nil {
			f.Src = rawsock.LocalAddr(fd)
		}
	}
	switch {
	case err != nil:
		return false
	case !done:
		return r.wait(host, fd, f, client, p)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.doubt.row = 0
	r.join(host, fd, f, Inbound)
	return true
}

// connect starts a connection to the guest, or to what is beyond it, in the name of f.Src. Nearly always it ends at once.
func (r *kernelRoad) connect(f stack.Flow, beyond bool) (fd int, done bool, err error) {
	if fd, err = r.k.Mint.Get(f.Dst.Addr().Is6(), beyond); err != nil {
		return -1, false, err
	}
	if err = rawsock.Bind(fd, f.Src); err == nil {
		if done, err = rawsock.ConnectState(fd, f.Dst); err == nil && !done {
			done, err = rawsock.ConnectState(fd, f.Dst)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// isJoined says whether there is a connection with these ends.
func (r *kernelRoad) isJoined(f stack.Flow) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for j := range r.joined {
		if j.info.Flow == f {
			return true
		}
	}
	return false
}

// linkAfter is how long a connect to the guest may take before it is left to the other road: a little more than a kernel
// waits before it sends its SYN again.
const linkAfter = 1200 * time.Millisecond

// wait sees to a connect that takes longer: the server's backlog is full, or a rule inside drops what comes by lo. The
// other road is the better one for both: it is as patient, and what it sends comes by the uplink.
func (r *kernelRoad) wait(host, fd int, f stack.Flow, client netip.AddrPort, p *PublishedTCP) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := &guestDial{r: r, host: host, fd: fd, flow: f, client: client, p: p}
	var err error
	if r.closed {
		err = unix.ECANCELED
	} else {
		d.token, err = r.loop.Watch(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, d)
	}
	if err != nil {
		unix.Close(fd)
		return false
	}
	r.dials[d] = struct{}{}
	d.timer = time.AfterFunc(linkAfter, d.late)
	return true
}

// late is called when the guest has not answered in time.
func (d *guestDial) late() {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	if _, there := d.r.dials[d]; there && !d.r.closed {
		d.p.doubt.add(d.r.t.log)
		d.leave()
	}
}

// leave gives the client to the other road. r.mu is held.
func (d *guestDial) leave() {
	d.end(false)
	unix.Close(d.fd)
	go d.p.serve(d.host, d.client)
}

// Ready is called when the connect has ended.
func (d *guestDial) Ready(uint32) {
	r := d.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.dials[d]; !there || r.closed {
		return
	}
	switch done, err := rawsock.ConnectState(d.fd, d.flow.Dst); {
	case err != nil:
		d.leave()
	case !done:
		_ = r.loop.Rearm(d.fd, unix.EPOLLOUT|unix.EPOLLONESHOT, d.token)
	default:
		d.p.doubt.row = 0
		d.end(false)
		r.join(d.host, d.fd, d.flow, Inbound)
	}
}

// end forgets the attempt, and with reset its sockets. r.mu is held.
func (d *guestDial) end(reset bool) {
	d.timer.Stop()
	d.r.loop.Unwatch(d.fd, d.token)
	delete(d.r.dials, d)
	if reset {
		unix.Close(d.fd)
		rawsock.Reset(d.host)
	}
}
