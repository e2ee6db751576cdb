package forwarder

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/policy"
)

// protoUDP and protoEcho tell the flows apart; protoEcho stands for ICMP and ICMPv6, the addresses say which.
const (
	protoUDP  = unix.IPPROTO_UDP
	protoEcho = unix.IPPROTO_ICMP
)

// flowKey names a flow as the guest sees it.
type flowKey struct {
	proto         uint8
	guest, remote netip.AddrPort
}

// peerKey names a flow as the host sees it.
type peerKey struct {
	s    *socket
	peer netip.AddrPort
}

// socketKey names an outbound socket: the guest's source, and the family of the host's side.
type socketKey struct {
	proto uint8
	v6    bool
	guest netip.AddrPort
}

// target is what a sender needs of a flow, copied out of the table.
type target struct {
	s       *socket
	peer    netip.AddrPort
	local   netip.Addr // the address to send from; zero: the kernel chooses
	scope   uint32     // interface of a link-local peer, or by which packets shall leave; 0: any
	gateway bool       // the destination is ours: no hop lies between
	link    int        // MTU of the host's link towards peer; 0: not known
	single  bool       // the host's link takes no trains
}

// datagramFlow is one conversation; all of it is guarded by table.mu.
type datagramFlow struct {
	target
	key   flowKey
	alt   netip.AddrPort // another host address to try when the first refuses; zero: none, or tried
	first []byte         // the client's first datagram, kept while moveClient may need it
	elem  *list.Element  // in s.flows
	used  time.Duration  // time of the last packet

	linkAt time.Duration // when link or single was found

	outPkts, outBytes uint64
	inPkts, inBytes   uint64
}

func (f *datagramFlow) assured() bool { return f.outPkts > 0 && f.inPkts > 0 }

func (f *datagramFlow) timeout() time.Duration {
	switch {
	case f.key.proto == protoEcho:
		return echoTimeout
	case f.assured():
		return assuredTimeout
	}
	return unrepliedTimeout
}

// table holds every flow and socket.
type table struct {
	mu      sync.Mutex
	closed  bool
	flows   map[flowKey]*datagramFlow
	peers   map[peerKey]*datagramFlow
	sockets map[socketKey]*socket // outbound
	byFD    map[int32]*socket     // all
	lru     list.List             // outbound sockets, the last used first
	dead    []*socket             // taken out, to be closed by unlock
}

func (t *table) init() {
	t.flows = map[flowKey]*datagramFlow{}
	t.peers = map[peerKey]*datagramFlow{}
	t.sockets = map[socketKey]*socket{}
	t.byFD = map[int32]*socket{}
}

// unlock releases mu and closes the sockets that were taken out meanwhile.
func (t *table) unlock() {
	dead := t.dead
	t.dead = nil
	t.mu.Unlock()
	for _, s := range dead {
		s.close()
	}
}

// use marks f as used now. mu is held.
func (t *table) use(f *datagramFlow, now time.Duration) {
	f.used = now
	f.s.flows.MoveToFront(f.elem)
	if f.s.elem != nil {
		t.lru.MoveToFront(f.s.elem)
	}
}

// touch looks a flow up for what the guest sends, and accounts pkts and bytes to it.
func (x *Datagrams) touch(key flowKey, pkts, bytes int) (target, bool) {
	now := x.now()
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.flows[key]
	if f == nil {
		return target{}, false
	}
	x.use(f, now)
	f.outPkts += uint64(pkts)
	f.outBytes += uint64(bytes)
	f.first = nil
	if (f.link > 0 || f.single) && now-f.linkAt >= linkLife {
		f.link, f.single = 0, false
	}
	return f.target, true
}

// open makes the flow of the guest's first packet to an allowed destination, and its socket where there is none.
// When it fails, that has been counted.
func (x *Datagrams) open(key flowKey, v policy.Verdict, pkts, bytes int) (target, error) {
	now := x.now()
	x.mu.Lock()
	defer x.unlock()
	s, err := x.outbound(socketKey{key.proto, v.Dst.Addr().Is6(), key.guest})
	if err != nil {
		x.count.drop(openFailure(key.proto, err))
		return target{}, err
	}
	if f := x.flows[key]; f != nil { // another goroutine was faster
		return f.target, nil
	}
	way := x.source(v.Dst.Addr())
	f := &datagramFlow{key: key, alt: v.Alt, target: target{s: s, peer: v.Dst, local: way.addr, scope: uint32(way.index), gateway: v.Gateway}, outPkts: uint64(pkts), outBytes: uint64(bytes)}
	x.insert(f, now)
	return f.target, nil
}

// source is how packets to dst leave the host.
func (x *Datagrams) source(dst netip.Addr) egress { return x.addrs.Load().egressTo(dst) }

func openFailure(proto uint8, err error) DropReason {
	switch {
	case err == errSocketClosed:
		return DropClosed
	case proto == protoEcho && pingDenied(err):
		return DropPingDenied
	}
	return DropNoSocket
}

// outbound returns the socket for k, making it when needed. mu is held, but not while a socket is made.
func (x *Datagrams) outbound(k socketKey) (*socket, error) {
	if s := x.sockets[k]; s != nil {
		return s, nil
	}
	if x.closed {
		return nil, errSocketClosed
	}
	x.unlock()
	s, err := x.newSocket(k)
	if err == unix.EMFILE || err == unix.ENFILE {
		x.mu.Lock()
		x.evictSocket()
		x.unlock()
		s, err = x.newSocket(k)
	}
	x.mu.Lock()
	if err != nil {
		return nil, err
	}
	if x.closed {
		x.dead = append(x.dead, s)
		return nil, errSocketClosed
	}
	if other := x.sockets[k]; other != nil {
		x.dead = append(x.dead, s)
		return other, nil
	}
	if err := x.watch(s); err != nil {
		x.dead = append(x.dead, s)
		return nil, err
	}
	for len(x.sockets) >= x.maxSockets {
		x.evictSocket()
	}
	s.elem = x.lru.PushFront(s)
	x.sockets[k] = s
	return s, nil
}

// insert puts f in the table, making room where a cap is reached. mu is held.
func (x *Datagrams) insert(f *datagramFlow, now time.Duration) {
	f.elem = f.s.flows.PushFront(f)
	x.use(f, now)
	for f.s.flows.Len() > x.maxPeers {
		x.count.drop(DropFlowEvicted)
		x.removeFlow(f.s.flows.Back().Value.(*datagramFlow))
	}
	if old := x.flows[f.key]; old != nil {
		x.removeFlow(old)
	}
	if old := x.peers[peerKey{f.s, f.peer}]; old != nil {
		x.removeFlow(old)
	}
	x.flows[f.key] = f
	x.peers[peerKey{f.s, f.peer}] = f
	if len(x.flows) > x.maxFlows {
		x.evictFlow(f)
	}
}

// evictFlow removes a flow other than keep: the oldest of the outbound socket idle for longest, else the oldest of
// keep's own socket. mu is held.
func (x *Datagrams) evictFlow(keep *datagramFlow) {
	victim := keep.s.flows.Back().Value.(*datagramFlow)
	if e := x.lru.Back(); e != nil {
		if f := e.Value.(*socket).flows.Back(); f != nil && f.Value.(*datagramFlow).used <= victim.used {
			victim = f.Value.(*datagramFlow)
		}
	}
	if victim != keep {
		x.count.drop(DropFlowEvicted)
		x.removeFlow(victim)
	}
}

// removeFlow takes f out, and its outbound socket when it was the last. mu is held.
func (x *Datagrams) removeFlow(f *datagramFlow) {
	if x.flows[f.key] == f {
		delete(x.flows, f.key)
	}
	if k := (peerKey{f.s, f.peer}); x.peers[k] == f {
		delete(x.peers, k)
	}
	if f.elem != nil {
		f.s.flows.Remove(f.elem)
		f.elem = nil
	}
	if f.s.pub == nil && f.s.flows.Len() == 0 {
		x.removeSocket(f.s)
	}
}

// removeSocket takes s and its flows out; unlock closes it. mu is held.
func (x *Datagrams) removeSocket(s *socket) {
	if x.byFD[int32(s.fd)] != s {
		return
	}
	delete(x.byFD, int32(s.fd))
	if s.pub != nil {
		// Closing would not do: whoever passed the socket in may still hold it, and epoll goes by what it holds.
		_ = unix.EpollCtl(x.epfd, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
	if s.elem != nil {
		x.lru.Remove(s.elem)
		s.elem = nil
	}
	if x.sockets[s.key] == s {
		delete(x.sockets, s.key)
	}
	for e := s.flows.Front(); e != nil; e = s.flows.Front() {
		x.removeFlow(e.Value.(*datagramFlow))
	}
	x.dead = append(x.dead, s)
}

// evictSocket takes out the outbound socket idle for longest. mu is held.
func (x *Datagrams) evictSocket() {
	if e := x.lru.Back(); e != nil {
		x.count.evicted.Add(1)
		x.removeSocket(e.Value.(*socket))
	}
}

func (x *Datagrams) sweepLoop() {
	defer x.wg.Done()
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		select {
		case <-x.stop:
			return
		case <-t.C:
			x.sweep()
		}
	}
}

// sweep removes what has been idle for too long. The lock is released between sockets: a full table must not hold up
// the packets.
func (x *Datagrams) sweep() {
	x.mu.Lock()
	all := make([]*socket, 0, len(x.byFD))
	for _, s := range x.byFD {
		all = append(all, s)
	}
	x.unlock()
	now := x.now()
	for _, s := range all {
		x.mu.Lock()
		for e := s.flows.Back(); e != nil; {
			f, older := e.Value.(*datagramFlow), e.Prev()
			if now-f.used < unrepliedTimeout {
				break
			}
			if now-f.used >= f.timeout() {
				x.removeFlow(f)
			}
			e = older
		}
		x.unlock()
	}
}
