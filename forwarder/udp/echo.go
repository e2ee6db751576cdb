package udp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/stack"
)

// pingHint is logged as the remedy if pingDenied returns true.
const pingHint = `sysctl -w net.ipv4.ping_group_range="0 2147483647"`

// HandleEcho sends an echo request of the guest by an unprivileged ping socket (icmp(7)). It does not block and does
// not keep e.
func (x *Path) HandleEcho(e *stack.Echo) {
	v4 := e.Dst.Is4()
	key := echoKey(e)
	t, ok := x.touch(key, 1, len(e.Payload))
	if !ok {
		proto := flow.ICMPv6
		if v4 {
			proto = flow.ICMP
		}
		v := x.f.Decide(flow.Key{Endpoint: e.Endpoint, Proto: proto, Src: netip.AddrPortFrom(e.Src, 0), Dst: key.remote}, 1)
		if v.Action != forwarder.Dial {
			if ie, send := v.Refusal.ICMP(); send {
				x.sendEchoError(e, ie)
			}
			return
		}
		v.Dst = netip.AddrPortFrom(v.Dst.Addr(), 0)
		v.Alt = netip.AddrPort{}
		var err error
		if t, err = x.open(key, &v, 1, len(e.Payload)); err == errRulesChanged {
			x.HandleEcho(e)
			return
		} else if err != nil {
			if pingDenied(err) {
				x.refuseEcho(e)
			}
			return
		}
	}
	ttl := e.TTL
	if !t.gateway {
		if ttl <= 1 {
			x.count.drop(DropTTL)
			x.sendEchoError(e, stack.TimeExceeded(v4))
			return
		}
		ttl--
	}
	head := [echoHeaderLen]byte{icmp6EchoRequest}
	if t.peer.Addr().Is4() {
		head[0] = icmp4EchoRequest
	}
	// The kernel writes checksum and identifier.
	binary.BigEndian.PutUint16(head[6:], e.Seq)
	if err := t.s.send(&t, head[:], e.Payload, 0, options(ttl, e.TOS, e.DF)); err != nil {
		if ie, send := x.sendError(t.peer, v4, err, 1); send {
			x.sendEchoError(e, ie)
		}
		return
	}
	x.count.outPkts.Add(1)
	x.count.outBytes.Add(uint64(len(e.Payload)))
}

// echoKey puts the identifier in the place of the guest's port.
func echoKey(e *stack.Echo) flowKey {
	return flowKey{e.Endpoint, protoEcho, netip.AddrPortFrom(e.Src, e.ID), netip.AddrPortFrom(e.Dst, 0)}
}

// pingDenied reports whether a ping socket was refused for lack of permission, or because the kernel has none.
func pingDenied(err error) bool {
	return err == unix.EACCES || err == unix.EPERM || err == unix.EPROTONOSUPPORT || err == unix.EAFNOSUPPORT
}

// refuseEcho answers a request for which no ping socket is permitted. A reply is never forged: the remote may not answer pings,
// and the guest must see that.
func (x *Path) refuseEcho(e *stack.Echo) {
	x.pingOnce.Do(func() {
		x.log.Warn("ping does not work: no permission for ping sockets", "remedy", pingHint)
	})
	x.sendEchoError(e, stack.Prohibited(e.Dst.Is4()))
}

func (x *Path) sendEchoError(req *stack.Echo, e stack.ICMPError) {
	if !x.errLimit.allow(x.now()) {
		x.count.drop(DropErrorRate)
		return
	}
	x.count.errors.Add(1)
	if err := x.guest.WriteEchoError(req, e); err != nil {
		x.count.drop(DropGuestWrite)
	}
}

// echoIn sends the reply that a ping socket received to the guest, with the guest's own identifier.
func (x *Path) echoIn(s *socket, r *receiver, from netip.AddrPort, data []byte, c control) {
	want := uint8(icmp6EchoReply)
	if !s.v6 {
		want = icmp4EchoReply
	}
	if len(data) < echoHeaderLen || data[0] != want || data[1] != 0 {
		x.count.drop(DropMalformed)
		return
	}
	now := x.now()
	x.mu.Lock()
	f := x.peers[peerKey{s: s, peer: netip.AddrPortFrom(from.Addr(), 0)}]
	if f == nil {
		x.mu.Unlock()
		x.count.drop(DropUnsolicited)
		return
	}
	payload := data[echoHeaderLen:]
	x.received(f, now, payload, nil, c)
	key, gateway := f.key, f.gateway
	x.mu.Unlock()
	e := &r.echo
	*e = stack.Echo{
		Endpoint: key.endpoint,
		Src:      key.remote.Addr(), Dst: key.guest.Addr(), ID: key.guest.Port(), Seq: binary.BigEndian.Uint16(data[6:]),
		Payload: payload, TTL: hop(c.ttl, gateway), TOS: c.tos,
	}
	if err := x.guest.WriteEchoReply(e); err != nil {
		x.count.drop(DropGuestWrite)
		return
	}
	x.count.inPkts.Add(1)
	x.count.inBytes.Add(uint64(len(payload)))
}

// echoError sends the guest the ICMP error about a request of flow key; sent begins with the request's header.
func (x *Path) echoError(key flowKey, sent []byte, e stack.ICMPError) {
	if len(sent) < echoHeaderLen {
		x.count.drop(DropMalformed)
		return
	}
	x.sendEchoError(&stack.Echo{
		Endpoint: key.endpoint,
		Src:      key.guest.Addr(), Dst: key.remote.Addr(), ID: key.guest.Port(), Seq: binary.BigEndian.Uint16(sent[6:]),
		Payload: sent[echoHeaderLen:],
	}, e)
}
