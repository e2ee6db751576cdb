package forwarder

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/rawsock"
	"rootlessnet/policy"
	"rootlessnet/stack"
)

// acceptMost bounds the connections accepted in one go: they may all be attempts to come around policy.
const acceptMost = 64

// request is a connection the guest wants. States: dialling, perhaps waiting for a free descriptor; offered, when the
// host's end is there and the SYN was sent back inside; then it is joined, or dropped.
type request struct {
	r       *kernelRoad
	syn     *stack.SYN
	verdict policy.Verdict
	fd      int // the host's socket; -1 for none
	tries   int // that found no descriptor
	dst     netip.AddrPort
	token   int32
	watched bool
	offered bool
	since   time.Time // of the dial, and then of the offer
}

// listener accepts what was offered.
type listener struct {
	r     *kernelRoad
	fd    int
	ipv6  bool
	token int32
}

// HandleSYN implements stack.SYNHandler: it judges and dials, and lets the guest's kernel shake hands with a socket of
// ours when there is somebody at the other end. Usually all of it happens in this call: the host's kernel answers a
// connect to a neighbour before it returns.
func (t *Streams) HandleSYN(q *stack.SYN) (taken bool) {
	r := t.kernel
	if r == nil || q.TTL != guestTTL && !wasForwarded(q.TTL) || t.cfg.ServeDNS != nil && q.Dst.Port() == dnsPort && t.answersDNS(q.Dst.Addr()) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(q)
}

// take is HandleSYN with r.mu held.
func (r *kernelRoad) take(q *stack.SYN) (taken bool) {
	t := r.t
	if r.closed {
		return true
	}
	if q.TTL != guestTTL && !r.forwards() {
		return r.hold(q)
	}
	if old := r.requests[q.Flow]; old != nil { // sent again
		if !old.offered {
			old.syn = q.Clone() // it may be another connection, from the same port
			return true
		}
		// The answer has not come through: a rule of the guest's is in the way. What comes by the link will reach it.
		r.unanswered(old)
		return false
	}
	if r.full() || r.doubtOf(q).now() {
		return false
	}
	v := t.cfg.Policy.Judge(policy.TCP, q.Src, q.Dst)
	if v.Action != policy.Allow {
		t.stats.refuse(v.Reason)
		refuseSYN(q, v)
		return true
	}
	if !t.acquire(v.Dst.Addr()) {
		t.stats.overShare.Add(1)
		return true // the guest sends its SYN again
	}
	r.dial(&request{r: r, syn: q, verdict: v, fd: -1, since: time.Now()}, v.Dst)
	return true
}

// refuseSYN answers a connection that policy does not allow.
func refuseSYN(q *stack.SYN, v policy.Verdict) {
	v4 := q.Dst.Addr().Is4()
	switch v.Action {
	case policy.Refuse:
		_ = q.Reset()
	case policy.Prohibit:
		_ = q.Unreachable(prohibited(v4))
	case policy.Unreachable:
		_ = q.Unreachable(hostUnreachable(v4))
	case policy.NoRoute:
		_ = q.Unreachable(netUnreachable(v4))
	}
}

// dial starts a connect to dst. q.syn may be lent still. r.mu is held.
func (r *kernelRoad) dial(q *request, dst netip.AddrPort) {
	fd, done, err := startDial(r.t.source(dst), dst, q.syn.TOS)
	if err != nil {
		r.failed(q, dst, err)
		return
	}
	q.fd, q.dst = fd, dst
	switch {
	case done:
		r.connected(q)
	default:
		q.syn = q.syn.Clone()
		if q.token, err = r.loop.Watch(fd, unix.EPOLLOUT|unix.EPOLLONESHOT, q); err != nil {
			r.failed(q, dst, err)
			return
		}
		q.watched = true
		r.requests[q.syn.Flow] = q
		r.sweepLater()
	}
}

// Ready is called when the connect has ended.
func (q *request) Ready(uint32) {
	r := q.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.requests[q.syn.Flow] != q || q.offered {
		return
	}
	done, err := rawsock.ConnectState(q.fd, q.dst)
	if !done && err == nil { // an event from before the wait
		_ = r.loop.Rearm(q.fd, unix.EPOLLOUT|unix.EPOLLONESHOT, q.token)
		return
	}
	delete(r.requests, q.syn.Flow)
	if err != nil {
		r.failed(q, q.dst, withICMP(q.fd, err, q.dst))
		return
	}
	r.connected(q)
}

func (r *kernelRoad) unwatch(q *request) {
	if q.watched {
		r.loop.Unwatch(q.fd, q.token)
		q.watched = false
	}
}

// connected offers the connection to the guest.
func (r *kernelRoad) connected(q *request) {
	r.t.release(q.verdict.Dst.Addr())
	if isSelf(q.fd, q.dst) {
		r.t.stats.dialErrors.Add(1)
		rawsock.Reset(q.fd)
		_ = q.syn.Reset()
		return
	}
	rawsock.NoDelay(q.fd) // the loop does the rest of tuneHost, when it is needed
	if q.watched {
		rememberErrors(q.fd, q.dst.Addr().Is4(), 0)
	}
	r.unwatch(q)
	l := r.listenerOf(q.syn.Dst.Addr())
	q.offered, q.since = true, time.Now()
	r.requests[q.syn.Flow] = q
	r.offered++
	r.inject(q.syn.Frame)
	if l != nil && !l.accept(q) { // the guest's answer is on its way, or lost
		q.syn = q.syn.Clone()
		r.sweepLater()
		r.await()
	}
}

// failed answers what the host's socket got, after the alternative was tried: a service on the host's loopback may listen
// on one family only, or there may be only one.
func (r *kernelRoad) failed(q *request, dst netip.AddrPort, err error) {
	if q.fd >= 0 {
		r.unwatch(q)
		unix.Close(q.fd)
		q.fd = -1
	}
	if alt := q.verdict.Alt; alt.IsValid() && dst != alt && !starved(err) {
		r.dial(q, alt)
		return
	}
	if starved(err) && q.tries < starvedTries {
		r.t.stats.starved.Add(1)
		if q.tries++; q.tries == 1 {
			q.syn = q.syn.Clone()
		}
		r.requests[q.syn.Flow] = q
		time.AfterFunc(starvedRetry, func() { r.again(q) })
		return
	}
	r.t.release(q.verdict.Dst.Addr())
	r.t.stats.dialErrors.Add(1)
	var de *dialError
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		_ = q.syn.Reset()
	case errors.As(err, &de) && de.icmp != nil:
		_ = q.syn.Unreachable(*de.icmp)
	}
}

// again dials once more for a request that found no descriptor.
func (r *kernelRoad) again(q *request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed && r.requests[q.syn.Flow] == q {
		delete(r.requests, q.syn.Flow)
		r.dial(q, q.verdict.Dst)
	}
}

// drop gives a request up. r.mu is held.
func (r *kernelRoad) drop(q *request) {
	if q.offered {
		r.offered--
	} else {
		r.t.release(q.verdict.Dst.Addr())
	}
	r.unwatch(q)
	if q.fd >= 0 {
		rawsock.Reset(q.fd)
	}
	delete(r.requests, q.syn.Flow)
}

// unanswered drops what was offered in vain.
func (r *kernelRoad) unanswered(q *request) {
	r.t.stats.unanswered.Add(1)
	r.doubtOf(q.syn).add(r.t.log)
	r.drop(q)
}

// inject sends the guest's own SYN to lo inside, where it meets a listener. A loss is mended as any other on the wire.
func (r *kernelRoad) inject(frame []byte) {
	_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(r.packets), uintptr(unsafe.Pointer(&frame[0])), uintptr(len(frame)), unix.MSG_DONTWAIT,
		uintptr(unsafe.Pointer(&r.to)), unsafe.Sizeof(r.to))
}

// await has the loop tell of the next connection. r.mu is held.
func (r *kernelRoad) await() {
	if r.offered == 0 || r.pausing { // others are not awaited
		return
	}
	for i := range r.listen {
		l := &r.listen[i]
		_ = r.loop.Rearm(l.fd, unix.EPOLLIN|unix.EPOLLONESHOT, l.token)
	}
}

// Ready is called when a connection has come that accept did not find at once.
func (l *listener) Ready(uint32) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	if !l.r.closed {
		l.accept(nil)
		l.r.await()
	}
}

// accept takes what there is, up to the connection that answers q if that is not nil. One that was not offered is
// somebody's attempt from inside to come around policy. r.mu is held.
func (l *listener) accept(q *request) (found bool) {
	r := l.r
	for range acceptMost {
		fd, peer, err := rawsock.Accept(l.fd)
		if err != nil {
			if starved(err) {
				r.t.stats.badAccepts.Add(1)
				r.pause()
			}
			return false
		}
		f := stack.Flow{Src: peer, Dst: rawsock.LocalAddr(fd)}
		p := r.requests[f]
		if p == nil || !p.offered {
			r.t.stats.strays.Add(1)
			rawsock.Reset(fd)
			continue
		}
		delete(r.requests, f)
		r.offered--
		r.doubtOf(p.syn).settle(r.t.log, fd, p.since)
		r.join(p.fd, fd, f, Outbound)
		if p == q {
			return true
		}
	}
	return false
}

// pause looks again in a while: a listener with something in it is ready all the time. r.mu is held.
func (r *kernelRoad) pause() {
	if !r.pausing {
		r.pausing = true
		time.AfterFunc(acceptPause, r.endPause)
	}
}

func (r *kernelRoad) endPause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pausing = false
	if !r.closed {
		r.await()
	}
}

// listenerOf is that of a's family; nil when there is none.
func (r *kernelRoad) listenerOf(a netip.Addr) *listener {
	for i := range r.listen {
		if r.listen[i].ipv6 == a.Is6() {
			return &r.listen[i]
		}
	}
	return nil
}
