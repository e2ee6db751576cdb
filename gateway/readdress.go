package gateway

import (
	"context"
	"fmt"

	"rootlessnet/plan"
)

// Readdress puts the addresses, routes, special addresses and outbound sources of now, a plan that Plan.Readdressed made,
// into force in the gateway; Relink does it inside the namespace. Calls must not overlap. An error of the stack means that
// nothing has changed.
func (g *Gateway) Readdress(now *plan.Plan) error {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	own := ownAddrs(now)
	to, err := addresses(now, own)
	if err != nil {
		return err
	}
	// From the outside to the inside: the gateway must serve an address before the guest uses it. The new policy judges the
	// live flows again.
	if err := g.stack.SetAddresses(stackConfig(now)); err != nil {
		return err
	}
	g.host.hostAddrs = own
	g.policy.Set(policyConfig(now, own))
	g.endpoint.SetAddresses(to)
	g.forwarder.Rejudge(guestID)
	g.current.Store(now)
	g.ports.readdress(now.Addrs.Guest, now.Addrs.Guest6, guestAddrs(now))
	return g.resolver.SetNames(g.names())
}

// Relink gives the uplink inside the namespace the addresses and routes of the plan in force, unless another program
// configures it.
func (g *Gateway) Relink() error {
	p := g.Plan()
	if g.ns == nil || p.Unconfigured {
		return nil
	}
	if err := g.ns.Relink(context.Background(), Uplink(p)); err != nil {
		return fmt.Errorf("addresses of %s: %w", p.IfName, err)
	}
	return nil
}
