package udp

import "rootlessnet/flow"

// enter adds the conversation to the table of flows. mu is held.
func (f *conversation) enter(x *Path) {
	f.x = x
	proto := flow.UDP
	if f.key.proto == protoEcho {
		proto = flow.ICMP
		if f.key.guest.Addr().Is6() {
			proto = flow.ICMPv6
		}
	}
	f.Entry.Key = flow.Key{Endpoint: f.key.endpoint, Proto: proto, Src: f.key.guest, Dst: f.key.remote}
	if f.s.pub != nil {
		f.Direction = flow.Inbound
		f.Entry.Key.Src, f.Entry.Key.Dst = f.key.remote, f.key.guest
	}
	f.Datapath, f.Peer = flow.Datagram, f.peer
	x.f.Flows.Add(&f.Entry, f)
}

// counters are those of the flow. mu is held.
func (f *conversation) counters() flow.Counters {
	c := flow.Counters{State: flow.Unreplied, BytesToHost: f.outBytes, BytesToGuest: f.inBytes, PacketsToHost: f.outPkts, PacketsToGuest: f.inPkts}
	if f.assured() {
		c.State = flow.Established
	}
	return c
}

// Counters implements flow.Carrier.
func (f *conversation) Counters() flow.Counters {
	f.x.mu.Lock()
	defer f.x.mu.Unlock()
	return f.counters()
}

// Kill implements flow.Carrier: it removes the flow, and closes its socket if that was its last flow.
func (f *conversation) Kill() {
	f.x.mu.Lock()
	defer f.x.unlock()
	if f.elem != nil {
		f.x.removeFlow(f)
	}
}
