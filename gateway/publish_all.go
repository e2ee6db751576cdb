package gateway

import (
	"context"
	"fmt"
	"slices"
	"time"

	"rootlessnet/internal/listenwatch"
	"rootlessnet/internal/procnet"
	"rootlessnet/plan"
)

const (
	// publishAllInterval is how often /proc/PID/net is read, and so the longest time until a new listener is published: short
	// enough for a user that has just started a server.
	publishAllInterval = 300 * time.Millisecond
	// publishAllMissed is for how many polls in a row a listener must be missing before its port is closed: a server that
	// restarts keeps its port.
	publishAllMissed = 4

	// ephemeralStart: UDP sockets bound to a port from here on are taken for clients, because the kernel picks the ports of
	// clients from there (net.ipv4.ip_local_port_range).
	ephemeralStart = 32768
)

// guestPort is a port that a server inside listens on.
type guestPort struct {
	proto string
	port  uint16
}

// publishAll publishes what listens in the namespace until ctx ends.
func (g *Gateway) publishAll(ctx context.Context) {
	procNet := fmt.Sprintf("/proc/%d/net", g.ns.InitPID())
	w := listenwatch.Watcher[guestPort]{
		Wanted: func() map[guestPort]bool { return guestPorts(procNet) },
		Open: func(list []guestPort) map[guestPort]error {
			refused := map[guestPort]error{}
			for _, p := range list {
				refused[p] = g.publish(p)
			}
			return refused
		},
		Close: func(list []guestPort) {
			g.ports.remove(func(b plan.Port) bool { return b.Auto && slices.Contains(list, guestPort{b.Proto, b.GuestPort}) })
		},
		Missed: publishAllMissed,
	}
	w.Poll()
	w.Run(ctx, publishAllInterval)
}

// guestPorts are the ports that a client of the guest's addresses can reach.
func guestPorts(procNet string) map[guestPort]bool {
	now := map[guestPort]bool{}
	for _, proto := range []string{"tcp", "udp"} {
		for _, a := range procnet.Listeners(procNet, proto) {
			if !a.Addr().IsLoopback() && !procnet.Unreachable(a.Addr()) && !(proto == "udp" && a.Port() >= ephemeralStart) {
				now[guestPort{proto, a.Port()}] = true
			}
		}
	}
	return now
}

// publish opens the same port on the host, or a free one if that is taken. A port that is published already is not changed.
func (g *Gateway) publish(p guestPort) error {
	for _, b := range g.ports.list() {
		if b.Proto == p.proto && b.GuestPort == p.port {
			return listenwatch.ErrLater
		}
	}
	m := plan.PortMapping{Proto: p.proto, HostPort: p.port, HostPortEnd: p.port, GuestPort: p.port}
	list, err := g.ports.add([]plan.PortMapping{m}, true)
	if err != nil {
		m.HostPort, m.HostPortEnd = 0, 0
		list, err = g.ports.add([]plan.PortMapping{m}, true)
	}
	if err != nil {
		g.log.Warn("cannot publish", "port", p.port, "proto", p.proto, "err", err)
		return err
	}
	m.HostPort, m.HostPortEnd = list[0].HostPort, list[0].HostPort
	if g.cfg.OnPublish != nil {
		g.cfg.OnPublish(m)
	}
	return nil
}
