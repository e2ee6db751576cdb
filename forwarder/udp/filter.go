package udp

import (
	"net/netip"
	"slices"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
)

// hostKey names what a socket may be sent by an address of the host's side.
type hostKey struct {
	s    *socket
	addr netip.Addr
}

// addSpoken enters an outbound flow of UDP in spoken. mu is held.
func (x *Path) addSpoken(f *conversation) {
	if f.client != nil || f.key.proto != protoUDP {
		return
	}
	k := hostKey{f.s, f.peer.Addr()}
	if f.nextSpoken = x.spoken[k]; f.nextSpoken != nil {
		f.nextSpoken.prevSpoken = f
	}
	x.spoken[k] = f
}

// removeSpoken reverses addSpoken. mu is held.
func (x *Path) removeSpoken(f *conversation) {
	if f.client != nil || f.key.proto != protoUDP {
		return
	}
	if f.nextSpoken != nil {
		f.nextSpoken.prevSpoken = f.prevSpoken
	}
	k := hostKey{f.s, f.peer.Addr()}
	switch {
	case f.prevSpoken != nil:
		f.prevSpoken.nextSpoken = f.nextSpoken
	case f.nextSpoken != nil:
		x.spoken[k] = f.nextSpoken
	default:
		delete(x.spoken, k)
	}
	f.prevSpoken, f.nextSpoken = nil, nil
}

// unspokenIn carries a datagram, or a GSO batch, of an outbound socket to the guest although the guest has sent nothing to its
// source, address and port: from another port of an address that the guest has sent to, as an answer to a group, or with
// full-cone filtering from anywhere. It opens no flow, which strangers must not be able to do; the guest does, when it
// answers. mu is held, and released.
func (x *Path) unspokenIn(s *socket, r *receiver, from netip.AddrPort, data []byte, c control) {
	key := flowKey{s.key.endpoint, protoUDP, s.key.guest, from}
	f, gateway := x.spoken[hostKey{s, from.Addr()}], false
	known := f != nil
	switch {
	case known:
		key.remote = netip.AddrPortFrom(f.key.remote.Addr(), from.Port())
		gateway = f.gateway
	case x.byFD[int32(s.fd)] == s && s.flows.Len() > 0 && (s.groups > 0 || x.fullCone(s)):
		f = s.flows.Front().Value.(*conversation)
	}
	if f == nil {
		x.mu.Unlock()
		x.count.drop(DropUnsolicited)
		return
	}
	x.mu.Unlock()
	if !x.admits(key, from, known) {
		x.count.drop(DropUnsolicited)
		return
	}
	now := x.now()
	x.mu.Lock()
	if f.elem != nil { // else it ended meanwhile
		x.received(f, now, data, r.more, c)
	}
	x.mu.Unlock()
	x.deliver(r, key, gateway, data, c)
}

// fullCone says whether the endpoint of s has full-cone filtering.
func (x *Path) fullCone(s *socket) bool {
	e := x.f.Endpoint(s.key.endpoint)
	return e != nil && e.FullCone()
}

// admits says whether the host's from may send to the guest under the name key.remote: where the guest might send there and reach
// it. So what is closed to the guest, such as other ports of the host's loopback, stays closed in this direction. known says
// that the guest has sent to the address; another one must not appear to be the guest itself, or on its link.
func (x *Path) admits(key flowKey, from netip.AddrPort, known bool) bool {
	e := x.f.Endpoint(key.endpoint)
	if e == nil {
		return false
	}
	if !known && !e.ClientVisible(key.remote.Addr(), key.guest.Addr()) {
		a := e.Addresses()
		return !slices.Contains(a.Guests, from.Addr()) && isNeighbour(a, from.Addr())
	}
	d := x.f.Peek(flow.Key{Endpoint: key.endpoint, Proto: flow.UDP, Src: key.guest, Dst: key.remote})
	return d.Action == forwarder.Dial && (d.Dst == from || d.Alt == from)
}

// isNeighbour says whether addr, with which the guest may not talk, may still answer a guest that takes answers of any address: it is
// one of the host's link, of which discovery over IPv6 consists, or the host's router, where the guest has the same gateway.
func isNeighbour(a *forwarder.Addresses, addr netip.Addr) bool {
	return addr.Is6() && addr.IsLinkLocalUnicast() || addr == a.Gateway4 || addr == a.Gateway6
}
