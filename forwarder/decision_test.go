package forwarder_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"rootlessnet/flow"
	"rootlessnet/forwarder"
	"rootlessnet/internal/nettest/forwardlab"
	"rootlessnet/policy"
)

// dns is a resolver that these tests never call.
type dns struct{}

func (dns) ServeTCP(net.Conn)             {}
func (dns) ServeUDP([]byte, func([]byte)) {}

// rules is the policy of the tests' network, with the host's loopback open.
func rules(change func(*policy.Config)) policy.Config {
	c := policy.Config{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6, Subnet4: forwardlab.Subnet4, Subnet6: forwardlab.Subnet6,
		HostLoopback: policy.HostLoopback{All: true}}
	if change != nil {
		change(&c)
	}
	return c
}

func gateways() forwarder.Addresses {
	return forwarder.Addresses{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6}
}

func key(proto flow.Proto, dst string) flow.Key {
	k := flow.Key{Proto: proto, Src: forwardlab.Guest4, Dst: forwardlab.AP(dst)}
	if k.Dst.Addr().Is6() {
		k.Src = forwardlab.Guest6
	}
	return k
}

func TestDecideDial(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	f.AddEndpoint(forwarder.EndpointConfig{Policy: policy.New(rules(nil)), Addresses: gateways()})
	for _, c := range []struct {
		dst, want, alt string
		gateway        bool
	}{
		{"192.0.2.1:80", "192.0.2.1:80", "", false},
		{"[2001:db8::1]:80", "[2001:db8::1]:80", "", false},
		{"10.0.2.2:80", "127.0.0.1:80", "[::1]:80", true},
		{"[fd00::2]:80", "[::1]:80", "127.0.0.1:80", true},
		{"10.0.2.2:53", "127.0.0.1:53", "[::1]:53", true}, // there is no resolver
	} {
		for _, proto := range []flow.Proto{flow.TCP, flow.UDP} {
			d := f.Decide(key(proto, c.dst), 1)
			var alt netip.AddrPort
			if c.alt != "" {
				alt = forwardlab.AP(c.alt)
			}
			if d.Action != forwarder.Dial || d.Dst != forwardlab.AP(c.want) || d.Alt != alt || d.Gateway != c.gateway {
				t.Errorf("%v to %s: %+v", proto, c.dst, d)
			}
		}
	}
	if n := f.Refused(); len(n) != 0 {
		t.Errorf("counted as refused: %v", n)
	}
}

// Queries to the resolver's address are answered by the resolver, whatever the policy is, and no other flows are.
func TestDecideResolver(t *testing.T) {
	closed := forwardlab.JudgeFunc(func(policy.Proto, netip.AddrPort, netip.AddrPort) policy.Verdict {
		return policy.Verdict{Action: policy.Refuse, Reason: policy.GatewayClosed}
	})
	extra := netip.MustParseAddr("10.0.2.3")
	for _, c := range []struct {
		addrs     []netip.Addr
		to, notTo []string
	}{
		{nil, []string{"10.0.2.2:53", "[fd00::2]:53"}, []string{"10.0.2.3:53", "10.0.2.2:54", "192.0.2.1:53"}},
		{[]netip.Addr{extra}, []string{"10.0.2.3:53"}, []string{"10.0.2.2:53", "[fd00::2]:53", "10.0.2.3:853"}},
	} {
		f := forwardlab.NewForwarder(t, forwarder.Config{})
		f.AddEndpoint(forwarder.EndpointConfig{Policy: closed, Resolver: dns{}, ResolverAddrs: c.addrs, Addresses: gateways()})
		for _, proto := range []flow.Proto{flow.TCP, flow.UDP} {
			for _, dst := range c.to {
				if d := f.Decide(key(proto, dst), 1); d.Action != forwarder.Resolve || d.Resolver != (dns{}) {
					t.Errorf("%v to %s: %+v", proto, dst, d)
				}
			}
			for _, dst := range c.notTo {
				if d := f.Decide(key(proto, dst), 1); d.Action != forwarder.Refuse {
					t.Errorf("%v to %s: %+v", proto, dst, d)
				}
			}
		}
		if d := f.Decide(key(flow.ICMP, c.to[0]), 1); d.Action != forwarder.Refuse {
			t.Errorf("an echo request: %+v", d)
		}
		if n := f.Refused()["gateway-closed"]; n != uint64(2*len(c.notTo)+1) {
			t.Errorf("counted %v", f.Refused())
		}
	}
}

// The counters count packets, by the reason of the refusal.
func TestRefusedIsCounted(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	f.AddEndpoint(forwarder.EndpointConfig{Policy: policy.New(rules(nil)), Addresses: gateways()})
	f.Decide(key(flow.UDP, "127.0.0.1:9"), 7)
	f.Decide(key(flow.TCP, "127.0.0.1:9"), 1)
	f.Decide(key(flow.UDP, "224.0.0.1:9"), 3)
	f.Decide(key(flow.UDP, "192.0.2.1:9"), 100) // allowed
	want := map[string]uint64{policy.Loopback.String(): 8, policy.Multicast.String(): 3}
	got := f.Refused()
	for reason, n := range want {
		if got[reason] != n {
			t.Errorf("%s: %d, want %d", reason, got[reason], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("counted %v", got)
	}
}

// Flows of an unknown endpoint are dropped without an answer, and so are those after RemoveEndpoint.
func TestDecideUnknownEndpoint(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	f.AddEndpoint(forwarder.EndpointConfig{ID: 4, Policy: forwardlab.JudgeFunc(nil)})
	k := key(flow.TCP, "192.0.2.1:80")
	refused := func(what string) {
		t.Helper()
		d := f.Decide(k, 1)
		if d.Action != forwarder.Refuse || d.Reason != policy.SpoofedSource || answered(d.Refusal, flow.TCP) != "silence" {
			t.Errorf("%s: %+v", what, d)
		}
	}
	refused("another endpoint")
	k.Endpoint = 4
	if d := f.Decide(k, 1); d.Action != forwarder.Dial {
		t.Errorf("a known endpoint: %+v", d)
	}
	f.RemoveEndpoint(4)
	refused("an endpoint that was removed")
	if n := f.Refused()[policy.SpoofedSource.String()]; n != 2 {
		t.Errorf("counted %v", f.Refused())
	}
}

// Each endpoint has a policy, a resolver and addresses of its own.
func TestTwoEndpoints(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	only := func(allowed netip.Addr) forwardlab.JudgeFunc {
		return func(_ policy.Proto, _, dst netip.AddrPort) policy.Verdict {
			if dst.Addr() != allowed {
				return policy.Verdict{Action: policy.Prohibit, Reason: policy.Embedded}
			}
			return policy.Verdict{Action: policy.Allow, Dst: dst}
		}
	}
	first, second := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	f.AddEndpoint(forwarder.EndpointConfig{ID: 1, Policy: only(first), Resolver: dns{}, Addresses: gateways()})
	f.AddEndpoint(forwarder.EndpointConfig{ID: 2, Policy: only(second), Addresses: forwarder.Addresses{Source4: netip.MustParseAddr("198.51.100.2")}})
	for _, c := range []struct {
		endpoint flow.Endpoint
		dst      netip.AddrPort
		want     forwarder.Action
	}{
		{1, netip.AddrPortFrom(first, 80), forwarder.Dial}, {1, netip.AddrPortFrom(second, 80), forwarder.Refuse},
		{2, netip.AddrPortFrom(first, 80), forwarder.Refuse}, {2, netip.AddrPortFrom(second, 80), forwarder.Dial},
		{1, netip.AddrPortFrom(forwardlab.Gateway4, 53), forwarder.Resolve}, {2, netip.AddrPortFrom(forwardlab.Gateway4, 53), forwarder.Refuse},
	} {
		k := flow.Key{Endpoint: c.endpoint, Proto: flow.TCP, Src: forwardlab.Guest4, Dst: c.dst}
		if d := f.Decide(k, 1); d.Action != c.want {
			t.Errorf("endpoint %d to %v: %+v", c.endpoint, c.dst, d)
		}
	}
	if e := f.Endpoint(1).Addresses().EgressTo(second); e != (forwarder.Egress{}) {
		t.Errorf("endpoint 1 leaves from %+v", e)
	}
	if e := f.Endpoint(2).Addresses().EgressTo(second); e.Addr != netip.MustParseAddr("198.51.100.2") {
		t.Errorf("endpoint 2 leaves from %+v", e)
	}
	// An endpoint that is replaced has its new rules.
	f.AddEndpoint(forwarder.EndpointConfig{ID: 1, Policy: only(second)})
	if d := f.Decide(flow.Key{Endpoint: 1, Proto: flow.TCP, Src: forwardlab.Guest4, Dst: netip.AddrPortFrom(first, 80)}, 1); d.Action != forwarder.Refuse {
		t.Errorf("after the endpoint was replaced: %+v", d)
	}
}

// entry is a flow that a datapath has added for the key.
func entry(k flow.Key) *flow.Entry { return &flow.Entry{Key: k, Peer: k.Dst} }

// A request that was decided under rules that have changed since is decided again.
func TestStillAllowed(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	live := policy.NewLive(rules(nil))
	f.AddEndpoint(forwarder.EndpointConfig{Policy: live, Addresses: gateways()})
	loopback, remote := key(flow.TCP, "10.0.2.2:80"), key(flow.TCP, "192.0.2.1:80")
	dl, dr := f.Decide(loopback, 1), f.Decide(remote, 1)
	if !f.StillAllowed(&dl, entry(loopback)) || !f.StillAllowed(&dr, entry(remote)) {
		t.Error("not allowed any more, and nothing has changed")
	}
	live.Set(rules(func(c *policy.Config) { c.HostLoopback = policy.HostLoopback{} }))
	f.Rejudge(0)
	if f.StillAllowed(&dl, entry(loopback)) {
		t.Error("what the new rules refuse is still allowed")
	}
	if !f.StillAllowed(&dr, entry(remote)) {
		t.Error("what the new rules allow is not allowed any more")
	}
	if refused := f.Refused(); len(refused) != 0 {
		t.Errorf("StillAllowed has counted refusals: %v", refused)
	}
	dr = f.Decide(remote, 1)
	f.RemoveEndpoint(0)
	if f.StillAllowed(&dr, entry(remote)) {
		t.Error("allowed without an endpoint")
	}
}

// carrier is a flow that a test has added to the table.
type carrier struct {
	flow.Entry
	f      *forwarder.Forwarder
	mu     sync.Mutex
	killed bool // guarded by mu
}

func (c *carrier) Counters() flow.Counters { return flow.Counters{} }
func (c *carrier) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	c.f.Flows.Remove(&c.Entry, flow.Counters{})
}

// Which flows a change of the rules or the addresses ends.
func TestRejudge(t *testing.T) {
	egress := forwarder.Addresses{Gateway4: forwardlab.Gateway4, Gateway6: forwardlab.Gateway6, Source4: netip.MustParseAddr("198.51.100.1")}
	none := func(*policy.Config, *forwarder.Addresses) {}
	closeLoopback := func(c *policy.Config, _ *forwarder.Addresses) { c.HostLoopback = policy.HostLoopback{} }
	otherSource := func(c *policy.Config, _ *forwarder.Addresses) {
		c.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.2.200/32")}
	}
	off := func(c *policy.Config, _ *forwarder.Addresses) { c.IPv4Off = true }
	otherEgress := func(_ *policy.Config, a *forwarder.Addresses) { a.Source4 = netip.MustParseAddr("198.51.100.9") }
	for _, c := range []struct {
		name   string
		change func(*policy.Config, *forwarder.Addresses)
		proto  flow.Proto
		dst    string
		edit   func(*flow.Entry)
		ended  bool
	}{
		{"nothing has changed", none, flow.TCP, "10.0.2.2:80", nil, false},
		{"nothing has changed, UDP", none, flow.UDP, "192.0.2.1:80", nil, false},
		{"TCP that is refused now", closeLoopback, flow.TCP, "10.0.2.2:80", nil, true},
		{"UDP that is refused now", closeLoopback, flow.UDP, "10.0.2.2:80", nil, true},
		{"TCP that is allowed as before", closeLoopback, flow.TCP, "192.0.2.1:80", nil, false},
		{"UDP that is allowed as before", closeLoopback, flow.UDP, "192.0.2.1:80", nil, false},
		{"TCP with a removed source address", otherSource, flow.TCP, "192.0.2.1:80", nil, false},
		{"UDP with a removed source address", otherSource, flow.UDP, "192.0.2.1:80", nil, true},
		{"echo with a removed source address", otherSource, flow.ICMP, "192.0.2.1:0", nil, true},
		{"TCP of a family that was switched off", off, flow.TCP, "192.0.2.1:80", nil, false},
		{"UDP of a family that was switched off", off, flow.UDP, "192.0.2.1:80", nil, true},
		{"TCP that would leave from another address", otherEgress, flow.TCP, "192.0.2.1:80", nil, false},
		{"UDP that would leave from another address", otherEgress, flow.UDP, "192.0.2.1:80", nil, true},
		{"UDP to the loopback, which no address concerns", otherEgress, flow.UDP, "10.0.2.2:80", nil, false},
		{"UDP that went to the alternative", none, flow.UDP, "10.0.2.2:80", func(e *flow.Entry) { e.Peer = forwardlab.AP("[::1]:80") }, false},
		{"UDP that would go elsewhere", none, flow.UDP, "10.0.2.2:80", func(e *flow.Entry) { e.Peer = forwardlab.AP("127.0.0.9:80") }, true},
		{"a client of a published port", closeLoopback, flow.TCP, "10.0.2.2:80", func(e *flow.Entry) { e.Direction = flow.Inbound }, false},
		{"a loopback forward", closeLoopback, flow.TCP, "10.0.2.2:80", func(e *flow.Entry) { e.Datapath = flow.Loopback }, false},
		{"another endpoint's", closeLoopback, flow.TCP, "10.0.2.2:80", func(e *flow.Entry) { e.Key.Endpoint = 1 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := forwardlab.NewForwarder(t, forwarder.Config{})
			cfg, addrs := rules(nil), egress
			live := policy.NewLive(cfg)
			for id := range flow.Endpoint(2) {
				f.AddEndpoint(forwarder.EndpointConfig{ID: id, Policy: live, Addresses: addrs})
			}
			e := &carrier{f: f}
			e.Key = key(c.proto, c.dst)
			d := f.Decide(e.Key, 1)
			e.Peer, e.Datapath = d.Dst, flow.Splice
			if c.proto != flow.TCP {
				e.Datapath, e.Egress = flow.Datagram, f.Endpoint(0).Addresses().EgressTo(d.Dst.Addr())
			}
			if c.edit != nil {
				c.edit(&e.Entry)
			}
			f.Flows.Add(&e.Entry, e)
			c.change(&cfg, &addrs)
			live.Set(cfg)
			f.Endpoint(0).SetAddresses(addrs)
			if n := f.Rejudge(0); n != map[bool]int{true: 1}[c.ended] || e.killed != c.ended {
				t.Errorf("%d ended, this one %v; want %v", n, e.killed, c.ended)
			}
			if f.Rejudge(7) != 0 {
				t.Error("flows of an unknown endpoint were ended")
			}
		})
	}
}

// The flows of an endpoint end with it, and those of others do not.
func TestRemoveEndpointEndsItsFlows(t *testing.T) {
	f := forwardlab.NewForwarder(t, forwarder.Config{})
	var l [2]*carrier
	for id := range l {
		f.AddEndpoint(forwarder.EndpointConfig{ID: flow.Endpoint(id), Policy: forwardlab.JudgeFunc(nil)})
		l[id] = &carrier{f: f}
		l[id].Key = key(flow.TCP, "192.0.2.1:80")
		l[id].Key.Endpoint = flow.Endpoint(id)
		f.Flows.Add(&l[id].Entry, l[id])
	}
	f.RemoveEndpoint(1)
	if l[0].killed || !l[1].killed || f.Flows.Len() != 1 {
		t.Errorf("killed %v, %v; %d left", l[0].killed, l[1].killed, f.Flows.Len())
	}
}
