package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"rootlessnet"
	"rootlessnet/internal/listenwatch"
	"rootlessnet/internal/pasta"
	"rootlessnet/internal/procnet"
)

// followInterval is how often the listeners of both sides are read.
const followInterval = time.Second

// follower carries out port rules with "auto": it opens a port on one side while a program listens on the port of the other side,
// and closes it when the listener is closed. Ports that the follower has opened itself do not count as listeners, because they
// would be forwarded back to the side that they come from.
type follower struct {
	o      *pasta.Options
	box    *rootlessnet.Sandbox
	log    *slog.Logger
	rules  []portSpec
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// followed identifies one port that is forwarded.
type followed struct {
	proto    string
	fromNS   bool
	addr     netip.Addr // of the host; the zero value is every address of both families
	port, to uint16     // port that clients connect to, and port of the server
}

// startFollower polls once before it returns, so that ports of existing listeners are forwarded when pasta reports that it is
// ready. It returns nil if no rule has "auto".
func startFollower(o *pasta.Options, box *rootlessnet.Sandbox, log *slog.Logger) *follower {
	f := &follower{o: o, box: box, log: log}
	for _, s := range specs(o) {
		if s.Auto() {
			f.rules = append(f.rules, s)
		}
	}
	if len(f.rules) == 0 {
		return nil
	}
	w := &listenwatch.Watcher[followed]{Wanted: f.wanted, Open: f.open, Close: f.remove}
	w.Poll()
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	f.wg.Go(func() { w.Run(ctx, followInterval) })
	return f
}

// end makes the follower stop; wait waits until it has.
func (f *follower) end() { f.cancel() }

func (f *follower) wait() { f.wg.Wait() }

// wanted returns the ports that are to be forwarded according to the rules and the current listeners.
func (f *follower) wanted() map[followed]bool {
	now := map[followed]bool{}
	for _, s := range f.rules {
		servers := f.servers(s)
		for _, r := range s.Rules {
			for to := range servers {
				if r.Auto && to >= r.To && to <= r.Target(r.Last) {
					f.want(now, s, r, to)
				}
			}
		}
	}
	return now
}

// open forwards ports. Those that fail are tried again at the next poll, because another program may have released the host's port.
func (f *follower) open(list []followed) map[followed]error {
	refused := map[followed]error{}
	for p, err := range f.add(list) {
		f.log.Debug("port not forwarded", "proto", p.proto, "port", p.port, "from_namespace", p.fromNS, "err", err)
		refused[p] = listenwatch.ErrLater
	}
	return refused
}

// want adds to now the ports that rule r forwards to a server's port.
func (f *follower) want(now map[followed]bool, s portSpec, r pasta.PortRule, to uint16) {
	p := followed{proto: s.proto, fromNS: s.fromNS, port: r.First + to - r.To, to: to}
	if s.fromNS {
		now[p] = true
		return
	}
	for _, p.addr = range hostAddrs(f.o, r) {
		now[p] = true
	}
}

// add opens what can be opened of list, in few calls, and returns the errors of the others. One call per port would take long for
// many, because each writes the sandbox's state file or asks the process inside.
func (f *follower) add(list []followed) map[followed]error {
	refused := map[followed]error{}
	var mappings []rootlessnet.PortMapping
	var forwards []rootlessnet.LoopbackForward
	of := map[rootlessnet.PortMapping]followed{}
	missing := map[rootlessnet.LoopbackForward]followed{}
	for _, p := range list {
		if p.fromNS {
			forwards = append(forwards, p.forward())
			missing[p.forward()] = p
			continue
		}
		m := rootlessnet.PortMapping{Proto: p.proto, HostIP: p.addr, HostPort: p.port, HostPortEnd: p.port, GuestPort: p.to}
		mappings = append(mappings, m)
		of[m] = p
	}
	addOptional(f.box, mappings, func(m rootlessnet.PortMapping, err error) { refused[of[m]] = err })
	if len(forwards) > 0 {
		opened, err := f.box.AddLoopbackForwards(forwards...)
		for _, have := range opened {
			delete(missing, have)
		}
		for _, p := range missing {
			refused[p] = err
		}
	}
	return refused
}

func (p followed) forward() rootlessnet.LoopbackForward {
	return rootlessnet.LoopbackForward{Proto: p.proto, Port: p.port, HostPort: p.to}
}

func (f *follower) remove(list []followed) {
	forwards := map[rootlessnet.LoopbackForward]bool{}
	ports := map[followed]bool{}
	for _, p := range list {
		if p.fromNS {
			forwards[p.forward()] = true
		} else {
			ports[p] = true
		}
	}
	if len(forwards) > 0 {
		f.box.RemoveLoopbackForwards(func(have rootlessnet.LoopbackForward) bool { return forwards[have] })
	}
	if len(ports) > 0 {
		f.box.RemovePorts(func(have rootlessnet.Port) bool {
			p := followed{proto: have.Proto, port: have.HostPort, to: have.GuestPort}
			everywhere := ports[p]
			p.addr = have.HostIP
			return everywhere || ports[p]
		})
	}
}

// servers returns the ports on which programs listen on the side that s forwards to.
func (f *follower) servers(s portSpec) map[uint16]bool {
	opened := map[netip.AddrPort]bool{}
	dir := "/proc/self/net"
	if s.fromNS {
		for _, p := range f.box.Ports() {
			if p.Proto == s.proto {
				opened[netip.AddrPortFrom(p.HostIP, p.HostPort)] = true
			}
		}
	} else {
		dir = fmt.Sprintf("/proc/%d/net", f.box.PID())
		for _, p := range f.box.LoopbackForwards() {
			if p.Proto == s.proto {
				opened[netip.AddrPortFrom(netip.IPv4Unspecified(), p.Port)] = true
				opened[netip.AddrPortFrom(netip.IPv6Unspecified(), p.Port)] = true
			}
		}
	}
	ports := map[uint16]bool{}
	for _, a := range procnet.Listeners(dir, s.proto) {
		if !opened[a] && f.reached(a.Addr(), s.fromNS) {
			ports[a.Port()] = true
		}
	}
	return ports
}

// reached reports whether a forwarded connection reaches a server that listens on a. From the namespace, connections are made to the
// host's loopback. From the host they are made to the namespace's interface, or to its loopback for clients on the host's
// loopback.
func (f *follower) reached(a netip.Addr, fromNS bool) bool {
	if a.IsLoopback() && f.o.HostLoToNSLo && !f.o.NoSplice {
		return true
	}
	return a.IsUnspecified() || a.IsLoopback() == fromNS && !procnet.Unreachable(a)
}
