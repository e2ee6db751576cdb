package gateway

import (
	"net/netip"
	"slices"
	"testing"

	"rootlessnet/plan"
	"rootlessnet/policy"
)

func planned(t *testing.T, n plan.NetworkPlan) *plan.Plan {
	t.Helper()
	p, err := plan.ResolveAttach(&plan.Config{Plan: &n, Configure: true}, &plan.Target{PID: 1}, noRoutes{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSpecialAddresses: the policy has an action for each target, and the stack answers echo requests for the addresses that
// are not forwarded.
func TestSpecialAddresses(t *testing.T) {
	addr := netip.MustParseAddr
	n := plan.NetworkPlan{Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.100/24")}, Gateway: addr("10.9.0.2")}
	want := map[netip.Addr]policy.Target{addr("10.9.0.2"): targets[plan.ToRefuse]}
	for i, to := range []plan.SpecialTarget{plan.ToRefuse, plan.ToLoopback, plan.ToHost, plan.ToNetwork, plan.ToNoRoute, plan.ToDrop} {
		a := netip.AddrFrom4([4]byte{10, 9, 0, byte(10 + i)})
		n.Special = append(n.Special, plan.SpecialAddr{Addr: a, To: to, Host: addr("127.0.0.1")})
		target, known := targets[to]
		if !known {
			t.Errorf("the policy has no meaning for %q", to)
		}
		want[a] = target
	}
	p := planned(t, n)
	for _, s := range policyConfig(p, hostAddrs{}).Special {
		if want[s.Addr] != s.To {
			t.Errorf("%s: target %v, want %v", s.Addr, s.To, want[s.Addr])
		}
		delete(want, s.Addr)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	local := stackConfig(p).Local
	for _, s := range p.Special {
		if got := slices.Contains(local, s.Addr); got != (s.To != plan.ToNetwork) {
			t.Errorf("%s (%q): the stack answers echo requests: %v", s.Addr, s.To, got)
		}
	}
}

// TestHostAddresses: a guest with addresses of the host may send from its own addresses only, and finds all of its prefix on
// the link.
func TestHostAddresses(t *testing.T) {
	n := plan.NetworkPlan{Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")}, Gateway: netip.MustParseAddr("192.0.2.1"), NoUDP: true}
	for _, hostAddresses := range []bool{false, true} {
		n.HostAddresses = hostAddresses
		p := planned(t, n)
		c := policyConfig(p, hostAddrs{})
		source, subnet := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.0/24")
		if hostAddresses {
			source, subnet = netip.MustParsePrefix("192.0.2.9/32"), netip.Prefix{}
		}
		if !slices.Equal(c.Sources, []netip.Prefix{source}) || c.Subnet4 != subnet || (len(onLink(p)) == 0) != hostAddresses {
			t.Errorf("host addresses %v: sources %v subnet %v on link %v", hostAddresses, c.Sources, c.Subnet4, onLink(p))
		}
		if !slices.Equal(c.Off, []policy.Proto{policy.UDP}) || !c.IPv6Off || c.IPv4Off {
			t.Errorf("off: %v, IPv4 %v, IPv6 %v", c.Off, c.IPv4Off, c.IPv6Off)
		}
	}
}

// TestOutbound: the interface is looked up by its name.
func TestOutbound(t *testing.T) {
	p := planned(t, plan.NetworkPlan{Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.100/24")}, Gateway: netip.MustParseAddr("10.9.0.2")})
	p.Outbound.Interface = "lo"
	if to, err := addresses(p, hostAddrs{}); err != nil || to.Interface4 != 1 || to.Interface6 != 0 {
		t.Errorf("%+v, %v", to, err)
	}
	p.Outbound.Interface6 = "no-such-if"
	if _, err := addresses(p, hostAddrs{}); err == nil {
		t.Error("an interface that does not exist")
	}
}
