package udp

import (
	"net/netip"
	"slices"
	"time"

	"rootlessnet/forwarder"
	"rootlessnet/stack"
)

const (
	// refusalPause is how long a published port does not try the server's address of the other family again after the guest
	// has refused there. The guest's kernel sends one ICMP error a second to a destination (net.ipv4.icmp_ratelimit, after a
	// burst of six), so more attempts would stay without the answer that ends them.
	refusalPause = time.Second
	// refusalTime is how long the guest, which is one link away, may take to refuse a datagram.
	refusalTime = 200 * time.Millisecond
	// A client that is forwarded to the other family is tried with its own again after ownFirst, and then after twice as long
	// each time, up to ownLast.
	ownFirst = time.Second
	ownLast  = 16 * time.Second
	// keepTime is how long after a refusal each datagram is kept until the guest has answered: the guest may refuse it too.
	keepTime = 5 * time.Second
	// maxKept is the largest datagram kept: what fits a packet on an Ethernet. Larger ones are left to the client's own
	// retry.
	maxKept = 1472
)

// moment is a time on the path's clock, or none.
type moment struct {
	at  time.Duration
	set bool
}

// within says whether the moment is less than d ago.
func (m moment) within(now, d time.Duration) bool { return m.set && now-m.at < d }

// client is the part of a flow that only those of published ports have. All of it is guarded by table.mu.
//
// A client belongs to the server's address of its own family (conversation.key). While nothing listens there, it is
// forwarded to the address of the other family, where it appears as the gateway, and a datagram of it goes to its own
// family now and then: the guest's refusal brings the same datagram to the other family, and without one the flow is
// back in its own. An answer from its own family brings it back at once.
type client struct {
	at       netip.Addr // the guest's address that the client has asked, in peerKey; zero where that makes no difference
	began    time.Duration
	other    netip.AddrPort // the server's address of the other family; zero: none
	otherKey flowKey        // the flow there, entered in table.others; the zero value before the first attempt

	toOther bool          // datagrams go there
	trying  bool          // and one went to the client's own family, at the time tried
	tried   time.Duration // or, if trying is false, the next one goes at tryAt
	tryAt   time.Duration
	pause   time.Duration // before the next attempt after that

	fresh   bool   // nothing was sent yet
	refused moment // in the client's own family
	served  moment // last answer from it
	kept    []byte // a datagram that went to the client's own family and may be refused; its memory is used again
	isKept  bool
}

// keyNow is the flow as the guest sees it now.
func (f *conversation) keyNow() flowKey {
	if f.client != nil && f.client.toOther {
		return f.client.otherKey
	}
	return f.key
}

// publishedIn carries a client's datagram, or a GSO batch, to the guest.
func (x *Path) publishedIn(s *socket, r *receiver, from netip.AddrPort, scope uint32, data []byte, c control) {
	now := x.now()
	x.mu.Lock()
	at := s.pub.asked(c.local, from.Addr())
	f := x.peers[peerKey{s, from, at}]
	if f != nil && f.outPkts == 0 && now-f.client.began >= forwarder.UnrepliedTimeout {
		x.removeFlow(f) // the guest has never answered; what the client sends does not prolong that
		f = nil
	}
	if f == nil {
		if x.byFD[int32(s.fd)] != s { // closed since it was read
			x.unlock()
			x.count.drop(DropClosed)
			return
		}
		f = x.newClient(s.pub, from, at, scope, now)
		if f == nil {
			x.unlock()
			x.count.drop(DropNoPort)
			return
		}
	}
	f.local = c.local
	x.received(f, now, data, r.more, c)
	key := f.route(now, data, c.gso)
	x.unlock()
	x.deliver(r, key, false, data, c)
}

// asked is the address of the guest to which a client's datagram to our address local goes; the zero value where the guest has
// one only. mu is held.
func (p *UDPPort) asked(local, client netip.Addr) netip.Addr {
	if p.guests == nil {
		return netip.Addr{}
	}
	if slices.Contains(p.guests, local) {
		return local
	}
	if client.Is4() {
		return p.cfg.Guest4.Addr()
	}
	return p.cfg.Guest6.Addr()
}

// newClient makes the flow of a client's first datagram; nil when no address and port of the gateway are free for the client. mu is held.
func (x *Path) newClient(p *UDPPort, from netip.AddrPort, at netip.Addr, scope uint32, now time.Duration) *conversation {
	guest, other := p.cfg.Guest4, p.cfg.Guest6
	if from.Addr().Is6() {
		guest, other = other, guest
	}
	if !guest.IsValid() {
		guest, other = other, netip.AddrPort{}
	} else if at.IsValid() {
		guest = netip.AddrPortFrom(at, guest.Port())
	}
	key, ok := x.clientKey(p, guest, from)
	if !ok {
		return nil
	}
	both := &struct { // one allocation
		conversation
		client
	}{conversation{key: key, target: target{s: p.s, peer: from, scope: scope}}, client{at: at, began: now, other: other, fresh: true}}
	f := &both.conversation
	f.client = &both.client
	for _, g := range p.guests { // an outbound flow that would take the answers from another address of the guest
		k := flowKey{key.endpoint, key.proto, netip.AddrPortFrom(g, guest.Port()), key.remote}
		if out := x.flows[k]; out != nil && out.client == nil && k != key {
			x.removeFlow(out)
		}
	}
	x.insert(f, now)
	return f
}

// clientKey chooses the address and port under which the guest sees a client. mu is held.
func (x *Path) clientKey(p *UDPPort, guest, from netip.AddrPort) (flowKey, bool) {
	key := flowKey{p.cfg.Endpoint, protoUDP, guest, from}
	e := x.f.Endpoint(p.cfg.Endpoint)
	if e == nil {
		return key, false
	}
	alias := !e.ClientVisible(from.Addr(), guest.Addr())
	if !alias {
		// An outbound flow to the client is replaced: what the guest sends there now are answers. So is one of this port, of
		// another address of the guest that the port had before. Only another published port with the same client and server
		// keeps its flow.
		if f := x.flows[key]; f == nil || f.client == nil || f.s.pub == p {
			return key, true
		}
	}
	a := from.Addr()
	if alias {
		if a = e.Addresses().Gateway4; guest.Addr().Is6() {
			a = e.Addresses().Gateway6
		}
		if !a.IsValid() {
			return key, false
		}
	}
	port := from.Port()
	for range aliasTries {
		key.remote = netip.AddrPortFrom(a, port)
		if x.flows[key] == nil && x.others[key] == nil && !e.AnswersDNS(key.remote) {
			return key, true
		}
		port = p.next
		if p.next++; p.next < aliasFirst {
			p.next = aliasFirst // it wrapped after aliasLast
		}
	}
	return key, false
}

// route is the flow by which the client's datagram goes to the guest. A datagram that may be refused is kept. mu is held.
func (f *conversation) route(now time.Duration, data []byte, gso uint16) flowKey {
	c := f.client
	switch {
	case !c.other.IsValid():
		return f.key
	case !c.toOther:
		if c.fresh || c.refused.within(now, keepTime) {
			c.keep(data, gso)
		}
		c.fresh = false
		return f.key
	case c.trying && now-c.tried >= refusalTime: // it was not refused
		c.toOther, c.trying = false, false
		c.keep(data, gso)
		return f.key
	case !c.trying && now >= c.tryAt:
		c.trying, c.tried = true, now
		c.keep(data, gso)
		return f.key
	}
	return c.otherKey
}

// keep keeps a datagram, of a GSO batch the first.
func (c *client) keep(data []byte, gso uint16) {
	if gso > 0 && int(gso) < len(data) {
		data = data[:gso]
	}
	if c.isKept = len(data) <= maxKept; c.isKept {
		c.kept = append(c.kept[:0], data...)
	}
}

// answered takes note of what the guest sends to the client as the flow key. mu is held.
func (c *client) answered(key flowKey, now time.Duration) {
	if key == c.otherKey {
		c.isKept = c.isKept && c.trying
		return
	}
	c.served = moment{now, true}
	c.refused, c.pause = moment{}, 0
	c.toOther, c.trying, c.isKept, c.kept = false, false, false, nil
}

// guestRefused is called when the guest has answered a client's datagram, sent as the flow key, with "port unreachable". Where the
// server may listen in the other family only, the datagram goes there.
func (x *Path) guestRefused(key flowKey) {
	x.mu.Lock()
	f := x.flows[key]
	if f == nil {
		f = x.others[key]
	}
	if f == nil || f.client == nil || !f.client.other.IsValid() {
		x.unlock()
		return
	}
	c, p, now := f.client, f.s.pub, x.now()
	if key == c.otherKey { // nothing listens in either: the client goes back to its own
		c.toOther, c.trying, c.pause = false, false, 0
		p.refused[family(c.other.Addr())] = moment{now, true}
		x.unlock()
		return
	}
	c.refused = moment{now, true}
	// A server that has answered in the client's own family is about to start again.
	if c.toOther && !c.trying || c.served.within(now, forwarder.UnrepliedTimeout) ||
		p.refused[family(c.other.Addr())].within(now, refusalPause) || !x.openOther(f) {
		x.unlock()
		return
	}
	c.pause = min(max(ownFirst, 2*c.pause), ownLast)
	c.toOther, c.trying, c.tryAt = true, false, now+c.pause
	d := stack.Datagram{Flow: stack.Flow{Endpoint: c.otherKey.endpoint, Src: c.otherKey.remote, Dst: c.otherKey.guest}}
	if !c.isKept {
		x.unlock()
		return
	}
	d.Payload, c.kept, c.isKept = c.kept, nil, false // handed over: the lock is not held while it is written
	x.unlock()
	if err := x.guest.WriteUDP(&d); err != nil {
		x.count.drop(DropGuestWrite)
	}
}

// openOther enters the flow to the server's address of the other family. mu is held.
func (x *Path) openOther(f *conversation) bool {
	c := f.client
	if c.otherKey != (flowKey{}) {
		return true
	}
	key, ok := x.clientKey(f.s.pub, c.other, f.peer)
	if ok {
		c.otherKey, x.others[key] = key, f
	}
	return ok
}

// find returns the flow of what the guest sends; nil: there is none. mu is held.
func (x *Path) find(key flowKey) *conversation {
	if f := x.flows[key]; f != nil {
		return f
	}
	if len(x.others) > 0 {
		if f := x.others[key]; f != nil {
			return f
		}
	}
	return x.findAnswer(key)
}

// findAnswer finds the flow of a client that a server inside answers from another address of the guest than the one asked, as
// the kernel inside has it do when its socket is bound to no address. mu is held.
func (x *Path) findAnswer(key flowKey) (found *conversation) {
	e := x.f.Endpoint(key.endpoint)
	if e == nil || key.proto != protoUDP {
		return nil
	}
	guests := e.Addresses().Guests
	if len(guests) < 2 || !slices.Contains(guests, key.guest.Addr()) {
		return nil
	}
	other := key
	for _, g := range guests {
		if g == key.guest.Addr() || g.Is4() != key.guest.Addr().Is4() {
			continue
		}
		other.guest = netip.AddrPortFrom(g, key.guest.Port())
		if f := x.flows[other]; f != nil && f.client != nil && (found == nil || f.used > found.used) {
			found = f
		}
	}
	return found
}
