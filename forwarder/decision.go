package forwarder

import (
	"net/netip"

	"rootlessnet/flow"
	"rootlessnet/policy"
)

// Action is what is done with a flow that the guest opens.
type Action uint8

const (
	// Refuse: nothing is opened; Decision.Refusal says what the guest is answered.
	Refuse Action = iota
	// Dial: Decision.Dst is what the host connects or sends to.
	Dial
	// Resolve: Decision.Resolver answers.
	Resolve
)

// Decision is what is done with a flow, and with which addresses. Every datapath gets it from Forwarder.Decide and acts on it.
type Decision struct {
	Action Action

	// Of Dial: the destination, and the one to try when nothing listens there (invalid: none). Gateway is set if the
	// guest addressed the gateway, so that no hop lies in between; both are then addresses of the host.
	Dst, Alt netip.AddrPort
	Gateway  bool

	// Of Resolve.
	Resolver Resolver

	rules uint64 // the generation of the rules that were used

	// Of Refuse. Reason is the cause, for counters and logs.
	Refusal Refusal
	Reason  policy.Reason
}

// Decide decides about the flow k that the guest opens. packets is how many packets are decided, for the counters: a denied
// datagram leaves no state behind and is decided each time. The rules may change while a request is being served; then the
// last decision counts, and Rejudge ends what the new rules do not allow.
func (f *Forwarder) Decide(k flow.Key, packets int) Decision {
	rules := f.rules.Load()
	d := f.decide(k)
	d.rules = rules
	if d.Action == Refuse {
		f.refused[d.Reason].Add(uint64(packets))
	}
	return d
}

// Peek is Decide without effect on the counters.
func (f *Forwarder) Peek(k flow.Key) Decision { return f.decide(k) }

func (f *Forwarder) decide(k flow.Key) Decision {
	e := f.Endpoint(k.Endpoint)
	if e == nil {
		return Decision{Reason: policy.SpoofedSource} // from behind a port that belongs to no guest
	}
	if (k.Proto == flow.TCP || k.Proto == flow.UDP) && e.AnswersDNS(k.Dst) {
		return Decision{Action: Resolve, Resolver: e.cfg.Resolver}
	}
	v := e.cfg.Policy.Judge(k.Proto, k.Src, k.Dst)
	if v.Action != policy.Allow {
		return Decision{Reason: v.Reason, Refusal: refusal(causeOfVerdict(v.Action), k.Proto, k.Dst.Addr().Is4())}
	}
	return Decision{Action: Dial, Dst: v.Dst, Alt: v.Alt, Gateway: v.Gateway}
}

// StillAllowed reports whether the rules still allow the flow e, for which Decide returned Dial with d. A datapath calls it after
// it has added the flow to the table: if the rules have changed between the two, Rejudge may have missed the flow.
func (f *Forwarder) StillAllowed(d *Decision, e *flow.Entry) bool {
	return d.rules == f.rules.Load() || f.allows(e.Key, e.Peer, e.Egress)
}

// Rejudge decides again about every outbound flow of an endpoint, on every datapath, and ends those that the rules and
// addresses in force do not allow any more. It returns how many.
func (f *Forwarder) Rejudge(id flow.Endpoint) (ended int) {
	f.rules.Add(1)
	if f.Endpoint(id) == nil {
		return 0
	}
	return f.Flows.KillIf(func(i *flow.Info) bool {
		return i.Key.Endpoint == id && i.Direction == flow.Outbound && i.Datapath != flow.Loopback && !f.allows(i.Key, i.Peer, i.Egress)
	})
}

// allows says whether the rules and addresses in force let the outbound flow k go on as it is: to peer, leaving the host by
// egress, which is an Egress where that matters.
//
// A TCP connection outlives the removal of its own address inside, or of its family: the address may come back, and the
// two ends notice by themselves when it does not. A datagram flow is also ended where its datagrams would now go elsewhere
// or leave the host by another address or interface; the next datagram opens the right one.
func (f *Forwarder) allows(k flow.Key, peer netip.AddrPort, egress any) bool {
	e := f.Endpoint(k.Endpoint)
	if e == nil {
		return false
	}
	d := f.decide(k)
	if k.Proto == flow.TCP {
		return d.Action != Refuse || d.Reason == policy.SpoofedSource || d.Reason == policy.FamilyOff
	}
	return d.Action == Dial && (peer.Addr() == d.Dst.Addr() || peer.Addr() == d.Alt.Addr()) && egress == any(e.Addresses().EgressTo(peer.Addr()))
}
