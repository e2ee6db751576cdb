package gateway

import (
	"context"

	"rootlessnet/plan"
)

// Follow starts the goroutines that keep the command's resolv.conf up to date with the host's and, with Plan.PublishAll, the
// published ports with what listens in the namespace, and the rules with the host's addresses. StopFollowing ends them.
func (g *Gateway) Follow() {
	ctx, cancel := context.WithCancel(context.Background())
	g.followers.cancel = cancel
	p := g.cfg.Plan
	if p.Network == plan.NetworkBridge {
		g.followers.wg.Go(func() { g.followResolver(ctx) })
	}
	if p.ReachesHost() {
		g.followers.wg.Go(func() { g.followHost(ctx) })
	}
	if p.PublishAll {
		g.followers.wg.Go(func() { g.publishAll(ctx) })
	}
}

// StopFollowing ends the goroutines of Follow and waits for them.
func (g *Gateway) StopFollowing() { g.followers.stop() }

// followResolver rewrites resolv.conf inside when the host's has changed.
func (g *Gateway) followResolver(ctx context.Context) {
	for {
		select {
		case <-g.resolver.Changed():
			if err := g.ns.UpdateResolvConf(g.ResolvConf()); err != nil {
				g.log.Debug("resolv.conf not updated", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
