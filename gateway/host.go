package gateway

import (
	"context"
	"net/netip"

	"rootlessnet/internal/hostnet"
	"rootlessnet/internal/lockrank"
	"rootlessnet/plan"
)

// host is what the data plane knows of the host's own addresses, for which the gateway's stand inside.
type host struct {
	mu lockrank.Mutex // held while rules and addresses of the data plane are replaced
	hostAddrs
}

// hostAddrs are addresses of the host on its network; the zero values if the gateway leads to its loopback only.
type hostAddrs struct{ v4, v6 netip.Addr }

// ownAddrs reads the host's addresses if the plan p leads to them.
func ownAddrs(p *plan.Plan) (a hostAddrs) {
	if p.ReachesHost() {
		a.v4, a.v6 = hostnet.Own()
	}
	return a
}

// followHost has the gateway stand for the addresses that the host has now, until ctx ends.
func (g *Gateway) followHost(ctx context.Context) {
	if err := hostnet.Watch(ctx, g.rehost); err != nil {
		g.log.Warn("changes of the host's addresses are not followed any more", "err", err)
	}
}

// rehost puts the host's addresses into force.
func (g *Gateway) rehost() {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	p := g.Plan()
	now := ownAddrs(p)
	if now == g.host.hostAddrs {
		return
	}
	to, err := addresses(p, now)
	if err != nil {
		g.log.Debug("the host's addresses were not taken over", "err", err)
		return
	}
	g.log.Debug("the gateway stands for other addresses of the host", "IPv4", now.v4, "IPv6", now.v6)
	g.host.hostAddrs = now
	g.policy.Set(policyConfig(p, now))
	g.endpoint.SetAddresses(to)
	g.forwarder.Rejudge(guestID)
}
