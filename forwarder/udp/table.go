package udp

import (
	"container/list"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/lockrank"
)

// protoUDP and protoEcho are the kinds of flows; protoEcho is ICMP or ICMPv6, depending on the addresses.
const (
	protoUDP  = unix.IPPROTO_UDP
	protoEcho = unix.IPPROTO_ICMP
)

// flowKey names a flow as the guest sees it, whichever side has opened it.
type flowKey struct {
	endpoint      flow.Endpoint
	proto         uint8
	guest, remote netip.AddrPort
}

// peerKey names a flow as the host sees it. at is client.at of a published port's flow, else zero.
type peerKey struct {
	s    *socket
	peer netip.AddrPort
	at   netip.Addr
}

// socketKey names an outbound socket: the guest's source, and the family of the host's side.
type socketKey struct {
	endpoint flow.Endpoint
	proto    uint8
	v6       bool
	guest    netip.AddrPort
}

// target is what a sender needs of a flow, copied out of the table.
type target struct {
	s       *socket
	peer    netip.AddrPort
	local   netip.Addr // the address to send from; zero: the kernel chooses
	scope   uint32     // interface of a link-local peer, or by which packets shall leave; 0: any
	gateway bool       // the destination is on the host: no hop lies between
	group   bool       // the destination is a multicast group
	link    int        // MTU of the host's link towards peer; 0: not known
	single  bool       // the host's link takes no GSO batches
}

// conversation is the state of one flow; all of it is guarded by table.mu.
type conversation struct {
	flow.Entry
	x *Path
	target
	key      flowKey
	decision forwarder.Decision // of an outbound flow
	alt      netip.AddrPort     // another host address to try when this one refuses; zero: none
	altAt    moment             // when that has refused
	client   *client            // of a published port's flow
	elem     *list.Element      // in s.flows
	used     time.Duration      // time of the last packet

	linkAt time.Duration // when link or single was found, or the interface towards a group

	outPkts, outBytes uint64
	inPkts, inBytes   uint64

	// The flows of the same socket to the same address, see table.spoken.
	prevSpoken, nextSpoken *conversation
}

func (f *conversation) peerKey() peerKey {
	k := peerKey{s: f.s, peer: f.peer}
	if f.client != nil {
		k.at = f.client.at
	}
	return k
}

func (f *conversation) assured() bool { return f.outPkts > 0 && f.inPkts > 0 }

func (f *conversation) timeout() time.Duration {
	switch {
	case f.key.proto == protoEcho:
		return forwarder.EchoTimeout
	case f.assured():
		return forwarder.AssuredTimeout
	}
	return forwarder.UnrepliedTimeout
}

// table holds every flow and socket.
type table struct {
	mu      lockrank.Mutex
	closed  bool
	flows   map[flowKey]*conversation
	others  map[flowKey]*conversation // of clients, by client.otherKey
	peers   map[peerKey]*conversation
	spoken  map[hostKey]*conversation // the first of the outbound flows of a socket to an address
	sockets map[socketKey]*socket     // outbound
	byFD    map[int32]*socket         // all
	lru     list.List                 // outbound sockets, the last used first
	dead    []*socket                 // removed from the table, to be closed by unlock
}

func (t *table) init() {
	t.mu.SetRank(lockrank.UDPTable)
	t.flows = map[flowKey]*conversation{}
	t.others = map[flowKey]*conversation{}
	t.peers = map[peerKey]*conversation{}
	t.spoken = map[hostKey]*conversation{}
	t.sockets = map[socketKey]*socket{}
	t.byFD = map[int32]*socket{}
}

// unlock releases mu and closes the sockets that were removed meanwhile.
func (t *table) unlock() {
	dead := t.dead
	t.dead = nil
	t.mu.Unlock()
	for _, s := range dead {
		s.close()
	}
}

// use marks f as used now. mu is held.
func (t *table) use(f *conversation, now time.Duration) {
	f.used = now
	f.s.flows.MoveToFront(f.elem)
	if f.s.elem != nil {
		t.lru.MoveToFront(f.s.elem)
	}
}

// touch looks a flow up for what the guest sends, and accounts pkts and bytes to it.
func (x *Path) touch(key flowKey, pkts, bytes int) (target, bool) {
	now := x.now()
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.find(key)
	if f == nil || f.group && now-f.linkAt >= linkLife {
		return target{}, false
	}
	x.use(f, now)
	f.outPkts += uint64(pkts)
	f.outBytes += uint64(bytes)
	if f.client != nil {
		f.client.answered(key, now)
	}
	if (f.link > 0 || f.single) && now-f.linkAt >= linkLife {
		f.link, f.single = 0, false
	}
	return f.target, true
}

// open makes the flow of the guest's first packet to an allowed destination, and its socket where there is none.
// A failure has been counted when it returns; after errRulesChanged the caller must decide again.
func (x *Path) open(key flowKey, v *forwarder.Decision, pkts, bytes int) (target, error) {
	var by forwarder.Egress
	if e := x.f.Endpoint(key.endpoint); e != nil {
		by = e.Addresses().EgressTo(v.Dst.Addr())
	}
	f := &conversation{key: key, decision: *v, alt: v.Alt, target: target{peer: v.Dst, local: by.Addr, scope: uint32(by.Index), gateway: v.Gateway}, outPkts: uint64(pkts), outBytes: uint64(bytes)}
	f.Egress = by
	now := x.now()
	if f.group = v.Dst.Addr().IsMulticast(); f.group {
		if f.scope == 0 {
			f.scope = groupInterface(v.Dst.Addr(), f.local)
		} else if isLoopback(f.scope) {
			f.scope = 0
		}
		if f.scope == 0 {
			x.count.drops[DropGroup].Add(uint64(pkts))
			return target{}, unix.ENETUNREACH
		}
		f.linkAt = now
	}
	x.mu.Lock()
	defer x.unlock()
	s, err := x.outbound(socketKey{key.endpoint, key.proto, v.Dst.Addr().Is6(), key.guest})
	if err == nil && f.group {
		err = s.prepareGroups()
	}
	if err != nil {
		x.count.drop(openFailure(key.proto, err))
		return target{}, err
	}
	if old := x.flows[key]; old != nil { // another goroutine was faster, or the way to a group is looked up again
		if old.group {
			old.outPkts, old.outBytes = old.outPkts+f.outPkts, old.outBytes+f.outBytes
			old.scope, old.linkAt, old.link, old.single = f.scope, now, 0, false
			x.use(old, now)
		}
		return old.target, nil
	}
	f.s = s
	x.insert(f, now)
	if !x.f.StillAllowed(v, &f.Entry) {
		x.removeFlow(f)
		return target{}, errRulesChanged
	}
	return f.target, nil
}

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
func (x *Path) outbound(k socketKey) (*socket, error) {
	if s := x.sockets[k]; s != nil {
		return s, nil
	}
	if x.closed {
		return nil, errSocketClosed
	}
	if !x.f.Budget.Take(fdbudget.UDP, 1) {
		if x.evictSocket(); !x.f.Budget.Take(fdbudget.UDP, 1) {
			return nil, unix.EMFILE
		}
	}
	s, added, err := x.addSocket(k)
	if !added {
		x.f.Budget.Give(fdbudget.UDP, 1)
	}
	return s, err
}

// addSocket makes the socket for k and enters it; added is false where it failed, or another goroutine was faster. mu is
// held, but not while the socket is made.
func (x *Path) addSocket(k socketKey) (s *socket, added bool, err error) {
	x.unlock()
	s, err = x.openSocket(k)
	if err == unix.EMFILE || err == unix.ENFILE {
		x.mu.Lock()
		x.evictSocket()
		x.unlock()
		s, err = x.openSocket(k)
	}
	x.mu.Lock()
	if err != nil {
		return nil, false, err
	}
	if x.closed {
		x.dead = append(x.dead, s)
		return nil, false, errSocketClosed
	}
	if other := x.sockets[k]; other != nil {
		x.dead = append(x.dead, s)
		return other, false, nil
	}
	if err := x.watch(s); err != nil {
		x.dead = append(x.dead, s)
		return nil, false, err
	}
	for len(x.sockets) >= x.maxSockets {
		x.evictSocket()
	}
	s.elem = x.lru.PushFront(s)
	x.sockets[k] = s
	return s, true, nil
}

// insert puts f in the table, and first removes another flow where a cap is reached. mu is held.
func (x *Path) insert(f *conversation, now time.Duration) {
	f.elem = f.s.flows.PushFront(f)
	x.use(f, now)
	for f.s.flows.Len() > x.maxPeers {
		x.count.drop(DropFlowEvicted)
		x.removeFlow(f.s.flows.Back().Value.(*conversation))
	}
	if old := x.flows[f.key]; old != nil {
		x.removeFlow(old)
	}
	if old := x.peers[f.peerKey()]; old != nil {
		x.removeFlow(old)
	}
	x.flows[f.key] = f
	x.peers[f.peerKey()] = f
	x.addSpoken(f)
	if f.group {
		f.s.groups++
	}
	f.enter(x)
	if len(x.flows) > x.maxFlows {
		x.evictFlow(f)
	}
}

// evictFlow removes a flow other than keep: the oldest of the outbound socket idle for longest, else the oldest of
// keep's own socket. mu is held.
func (x *Path) evictFlow(keep *conversation) {
	victim := keep.s.flows.Back().Value.(*conversation)
	if e := x.lru.Back(); e != nil {
		if f := e.Value.(*socket).flows.Back(); f != nil && f.Value.(*conversation).used <= victim.used {
			victim = f.Value.(*conversation)
		}
	}
	if victim != keep {
		x.count.drop(DropFlowEvicted)
		x.removeFlow(victim)
	}
}

// removeFlow removes f, and its outbound socket if f was the socket's last flow. mu is held.
func (x *Path) removeFlow(f *conversation) {
	if x.flows[f.key] == f {
		delete(x.flows, f.key)
	}
	if k := f.peerKey(); x.peers[k] == f {
		delete(x.peers, k)
	}
	if f.client != nil && f.client.otherKey != (flowKey{}) {
		delete(x.others, f.client.otherKey)
	}
	if f.elem != nil {
		x.removeSpoken(f)
		if f.group {
			f.s.groups--
		}
		f.s.flows.Remove(f.elem)
		f.elem = nil
		x.f.Flows.Remove(&f.Entry, f.counters())
	}
	if f.s.pub == nil && f.s.flows.Len() == 0 {
		x.removeSocket(f.s)
	}
}

// removeSocket removes s and its flows; unlock closes it. mu is held.
func (x *Path) removeSocket(s *socket) {
	if x.byFD[int32(s.fd)] != s {
		return
	}
	delete(x.byFD, int32(s.fd))
	if s.pub != nil {
		// Closing the descriptor would not remove it from epoll: the caller that passed the socket in may have a duplicate open.
		_ = unix.EpollCtl(x.epfd, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
	if s.elem != nil {
		x.lru.Remove(s.elem)
		s.elem = nil
		x.f.Budget.Give(fdbudget.UDP, 1)
	}
	if x.sockets[s.key] == s {
		delete(x.sockets, s.key)
	}
	for e := s.flows.Front(); e != nil; e = s.flows.Front() {
		x.removeFlow(e.Value.(*conversation))
	}
	x.dead = append(x.dead, s)
}

// evictSocket removes the outbound socket idle for longest. mu is held.
func (x *Path) evictSocket() {
	if e := x.lru.Back(); e != nil {
		x.count.evicted.Add(1)
		x.removeSocket(e.Value.(*socket))
	}
}

func (x *Path) sweepLoop() {
	defer x.wg.Done()
	t := time.NewTicker(forwarder.SweepInterval)
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

// sweep removes what has been idle for too long. The lock is released between sockets: the sweep of a full table must not
// delay packets.
func (x *Path) sweep() {
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
			f, older := e.Value.(*conversation), e.Prev()
			if now-f.used < forwarder.UnrepliedTimeout {
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
