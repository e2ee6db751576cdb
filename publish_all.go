package rootlessnet

import (
	"context"
	"log/slog"
	"time"

	"rootlessnet/api"
	"rootlessnet/internal/procnet"
)

const (
	// followInterval is how late a new listener may be published: soon enough for a person who has just started one.
	followInterval = 300 * time.Millisecond
	// followGone is for how many looks a listener must be missing before its port is closed: a server that restarts
	// keeps it.
	followGone = 4

	// ephemeralStart: UDP sockets at or above it were most likely given their port by the kernel to ask something,
	// not to serve (net.ipv4.ip_local_port_range).
	ephemeralStart = 32768
)

// guestPort is something that listens inside.
type guestPort struct {
	proto string
	port  uint16
}

// listenFollower publishes what listens inside (PublishAll). All of it belongs to the goroutine of run.
type listenFollower struct {
	ports     *ports
	procNet   string // /proc/PID/net of a process in the namespace
	log       *slog.Logger
	onPublish func(PortMapping)

	missing map[guestPort]int // published by us; for how many looks it has not been seen
	failed  map[guestPort]bool
}

func (f *listenFollower) run(ctx context.Context) {
	f.missing, f.failed = map[guestPort]int{}, map[guestPort]bool{}
	t := time.NewTicker(followInterval)
	defer t.Stop()
	for {
		f.look()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (f *listenFollower) look() {
	now := map[guestPort]bool{}
	for _, proto := range []string{"tcp", "udp"} {
		for _, a := range procnet.Listeners(f.procNet, proto) {
			if !a.Addr().IsLoopback() && !procnet.Internal(a.Addr()) && !(proto == "udp" && a.Port() >= ephemeralStart) {
				now[guestPort{proto, a.Port()}] = true
			}
		}
	}
	for p := range now {
		if _, ours := f.missing[p]; ours {
			f.missing[p] = 0
		} else if !f.failed[p] {
			f.publish(p)
		}
	}
	for p := range f.failed {
		if !now[p] {
			delete(f.failed, p)
		}
	}
	for p := range f.missing {
		if now[p] {
			continue
		}
		if f.missing[p]++; f.missing[p] >= followGone {
			delete(f.missing, p)
			f.ports.remove(func(b api.Port) bool { return b.Auto && b.Proto == p.proto && b.GuestPort == p.port })
		}
	}
}

// publish opens the same port on the host, or a free one.
func (f *listenFollower) publish(p guestPort) {
	for _, b := range f.ports.list() {
		if b.Proto == p.proto && b.GuestPort == p.port {
			return // by -p
		}
	}
	m := PortMapping{Proto: p.proto, HostPort: p.port, HostPortEnd: p.port, GuestPort: p.port}
	list, err := f.ports.add([]PortMapping{m}, true)
	if err != nil {
		m.HostPort, m.HostPortEnd = 0, 0
		list, err = f.ports.add([]PortMapping{m}, true)
	}
	if err != nil {
		f.failed[p] = true
		f.log.Warn("cannot publish", "port", p.port, "proto", p.proto, "err", err)
		return
	}
	f.missing[p] = 0
	m.HostPort, m.HostPortEnd = list[0].HostPort, list[0].HostPort
	if f.onPublish != nil {
		f.onPublish(m)
	}
}
