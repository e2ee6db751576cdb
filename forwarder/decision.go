package forwarder

import (
	"net/netip"

	"rootlessnet/flow"
	"rootlessnet/policy"
)

// Action is what becomes of a flow that the guest opens.
type Action uint8

const (
	// Refuse: nothing is opened; Decision.Refusal says what the guest is answered.
	Refuse Action = iota
	// Dial: Decision.Dst is what the host connects or sends to.
	Dial
	// Resolve: Decision.Resolver answers.
	Resolve
)

// Decision is the one answer to the question what becomes of a flow. Every datapath asks Forwarder.Decide and acts on it.
type Decision struct {
	Action Action

	// Of Dial: the destination, and the one to try when nothing listens there (invalid: none). Gateway says that the
	// guest addressed the gateway, so that no hop lies in between; both are then on the host's loopback.
	Dst, Alt netip.AddrPort
	Gateway  bool

	// Of Resolve.
	Resolver Resolver

	rules uint64 // the generation of the rules that decided

	// Of Refuse. Reason says why, for counters and logs.
	Refusal Refusal
	Reason  policy.Reason
}

// Decide says what becomes of the flow k that the guest opens. packets is how many packets ask, for the counters: a denied
// datagram leaves no state behind and is decided each time. The rules may change while a request is being served; then the
// last answer counts, and Rejudge ends what the new rules do not allow.
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

// StillAllowed says whether the flow k, for which Decide said Dial, is still allowed. A datapath asks when it has added
// the flow to the table: if the rules have changed between the two, Rejudge may have missed the flow.
func (f *Forwarder) StillAllowed(d *Decision, k flow.Key) bool {
	return d.rules == f.rules.Load() || f.decide(k).Action == Dial
}

// Rejudge decides again about every outbound flow of an endpoint, on every datapath, and ends those that the rules and
// addresses in force do not allow any more. It returns how many.
//
// A TCP connection outlives the removal of its own address inside, or of its family: the address may come back, and the
// two ends notice by themselves when it does not. A datagram flow is also ended where its datagrams would now go elsewhere
// or leave the host by another address or interface; the next datagram opens the right one.
func (f *Forwarder) Rejudge(id flow.Endpoint) (ended int) {
	f.rules.Add(1)
	e := f.Endpoint(id)
	if e == nil {
		return 0
	}
	return f.Flows.KillIf(func(i *flow.Info) bool {
		if i.Key.Endpoint != id || i.Direction != flow.Outbound || i.Datapath == flow.Loopback {
			return false
		}
		d := f.decide(i.Key)
		if i.Key.Proto == flow.TCP {
			return d.Action == Refuse && d.Reason != policy.SpoofedSource && d.Reason != policy.FamilyOff
		}
		return d.Action != Dial || i.Peer.Addr() != d.Dst.Addr() && i.Peer.Addr() != d.Alt.Addr() || i.Egress != any(e.Addresses().EgressTo(i.Peer.Addr()))
	})
}
