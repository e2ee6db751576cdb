package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"rootlessnet"
	"rootlessnet/internal/pasta"
	"rootlessnet/internal/procnet"
)

// followInterval is how often each side is looked at for what listens there.
const followInterval = time.Second

// follower opens on one side what listens on the other, as far as rules with "auto" say so, and closes it when that has
// gone. What it has opened it does not take for somebody's server: it would be led back to where it came from.
type follower struct {
	o     *pasta.Options
	box   *rootlessnet.Sandbox
	log   *slog.Logger
	rules []portSpec
	open  map[followed]bool
	stop  chan struct{}
	wg    sync.WaitGroup
}

// followed is one port that was opened.
type followed struct {
	proto    string
	fromNS   bool
	addr     netip.Addr // of the host; the zero value is every address of both families
	port, to uint16
}

// startFollower looks once before it returns, so that what listens already is there when we are ready. It returns nil if
// there is nothing to follow.
func startFollower(o *pasta.Options, box *rootlessnet.Sandbox, log *slog.Logger) *follower {
	f := &follower{o: o, box: box, log: log, open: map[followed]bool{}, stop: make(chan struct{})}
	for _, s := range specs(o) {
		if s.Auto() {
			f.rules = append(f.rules, s)
		}
	}
	if len(f.rules) == 0 {
		return nil
	}
	f.look()
	f.wg.Go(func() {
		t := time.NewTicker(followInterval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				f.look()
			case <-f.stop:
				return
			}
		}
	})
	return f
}

// end has it stop; wait waits until it has.
func (f *follower) end() { close(f.stop) }

func (f *follower) wait() { f.wg.Wait() }

func (f *follower) look() {
	now := map[followed]bool{}
	for _, s := range f.rules {
		servers := f.servers(s)
		for _, r := range s.Rules {
			for to := range servers {
				if r.Auto && to >= r.To && uint32(to) <= uint32(r.Leads(r.Last)) {
					f.want(now, s, r, to)
				}
			}
		}
	}
	for p := range f.open {
		if !now[p] {
			delete(f.open, p)
			f.remove(p)
		}
	}
	for p := range now {
		if f.open[p] {
			continue
		}
		if err := f.add(p); err != nil {
			f.log.Debug("port not forwarded", "proto", p.proto, "port", p.port, "from the namespace", p.fromNS, "err", err)
			continue
		}
		f.open[p] = true
	}
}

// want adds the ports by which a rule reaches the server's port to.
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

func (f *follower) add(p followed) error {
	if p.fromNS {
		_, err := f.box.AddLoopbackForwards(rootlessnet.LoopbackForward{Proto: p.proto, Port: p.port, HostPort: p.to})
		return err
	}
	_, err := f.box.AddMappings(rootlessnet.PortMapping{Proto: p.proto, HostIP: p.addr, HostPort: p.port, HostPortEnd: p.port, GuestPort: p.to})
	return err
}

func (f *follower) remove(p followed) {
	if p.fromNS {
		f.box.RemoveLoopbackForwards(func(have rootlessnet.LoopbackForward) bool { return have.Proto == p.proto && have.Port == p.port })
		return
	}
	f.box.RemovePorts(func(have rootlessnet.Port) bool {
		return have.Proto == p.proto && have.HostPort == p.port && have.GuestPort == p.to && (!p.addr.IsValid() || have.HostIP == p.addr)
	})
}

// servers are the ports that somebody serves on the side where the rule leads.
func (f *follower) servers(s portSpec) map[uint16]bool {
	ours := map[netip.AddrPort]bool{}
	dir := "/proc/self/net"
	if s.fromNS {
		for _, p := range f.box.Ports() {
			if p.Proto == s.proto {
				ours[netip.AddrPortFrom(p.HostIP, p.HostPort)] = true
			}
		}
	} else {
		dir = fmt.Sprintf("/proc/%d/net", f.box.PID())
		for _, p := range f.box.LoopbackForwards() {
			if p.Proto == s.proto {
				ours[netip.AddrPortFrom(netip.IPv4Unspecified(), p.Port)] = true
				ours[netip.AddrPortFrom(netip.IPv6Unspecified(), p.Port)] = true
			}
		}
	}
	ports := map[uint16]bool{}
	for _, a := range procnet.Listeners(dir, s.proto) {
		if !ours[a] && f.reached(a.Addr(), s.fromNS) {
			ports[a.Port()] = true
		}
	}
	return ports
}

// reached says whether what is led to the other side finds a server that listens on a: from the namespace it comes to the
// host's loopback, and from the host to the namespace's interface, or what comes by the host's loopback to its own.
func (f *follower) reached(a netip.Addr, fromNS bool) bool {
	if a.IsLoopback() && f.o.HostLoToNSLo && !f.o.NoSplice {
		return true
	}
	return a.IsUnspecified() || a.IsLoopback() == fromNS && !procnet.Internal(a)
}
