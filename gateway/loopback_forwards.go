package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"rootlessnet/forwarder"
	"rootlessnet/forwarder/loopback"
	"rootlessnet/internal/fdbudget"
	"rootlessnet/internal/lockrank"
	"rootlessnet/plan"
)

// loopbackForwards are a sandbox's forwards from the loopback inside the namespace to the host's. Safe for concurrent use.
type loopbackForwards struct {
	f *forwarder.Forwarder

	change lockrank.Mutex // held while forwards are added or removed, and sockets are requested from the agent

	mu     lockrank.Mutex
	relay  *loopback.Relay                         // guarded by mu; nil before the first forward
	open   map[plan.LoopbackForward]*loopback.Port // guarded by mu
	closed bool                                    // guarded by mu
}

func newLoopbackForwards(f *forwarder.Forwarder) *loopbackForwards {
	l := &loopbackForwards{f: f, open: map[plan.LoopbackForward]*loopback.Port{}}
	l.change.SetRank(lockrank.GatewayForwardsChange)
	l.mu.SetRank(lockrank.GatewayForwards)
	return l
}

// AddLoopbackForwards opens what can be opened of list and returns it. err is the first failure and wraps the errno of
// bind(2). It is an error if the namespace is not entered.
func (g *Gateway) AddLoopbackForwards(list ...plan.LoopbackForward) (opened []plan.LoopbackForward, err error) {
	if g.ns == nil {
		return nil, errors.New("the namespace is not entered")
	}
	for _, f := range list {
		if err := f.Validate(); err != nil {
			return nil, err
		}
	}
	return g.forwards.add(g.ns, list)
}

// RemoveLoopbackForwards closes the forwards for which want returns true, and returns them. Established connections go on.
func (g *Gateway) RemoveLoopbackForwards(want func(plan.LoopbackForward) bool) []plan.LoopbackForward {
	return g.forwards.remove(want)
}

// LoopbackForwards lists the forwards that are open now.
func (g *Gateway) LoopbackForwards() []plan.LoopbackForward { return g.forwards.list() }

func (l *loopbackForwards) list() (list []plan.LoopbackForward) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.open {
		list = append(list, f)
	}
	return list
}

func (l *loopbackForwards) add(ns Namespace, list []plan.LoopbackForward) (opened []plan.LoopbackForward, err error) {
	l.change.Lock()
	defer l.change.Unlock()
	relay, err := l.start()
	if err != nil {
		return nil, err
	}
	fail := func(f plan.LoopbackForward, ferr error) {
		if err == nil {
			err = fmt.Errorf("port %s of the namespace's loopback: %w", f, ferr)
		}
	}
	for _, proto := range []string{"tcp", "udp"} {
		var some []plan.LoopbackForward
		var ports []uint16
		for _, f := range list {
			switch {
			case f.Proto != proto:
			case !l.f.Budget.Take(fdbudget.Listeners, 1):
				fail(f, unix.EMFILE)
			default:
				some, ports = append(some, f), append(ports, f.Port)
			}
		}
		files, errs, lerr := ns.Listen(context.Background(), proto, ports)
		if lerr != nil {
			l.f.Budget.Give(fdbudget.Listeners, len(some))
			return opened, lerr
		}
		for i, f := range some {
			ferr := errs[i]
			if ferr == nil {
				ferr = l.forward(relay, f, files[i])
			}
			if ferr != nil {
				l.f.Budget.Give(fdbudget.Listeners, 1)
				fail(f, ferr)
				continue
			}
			opened = append(opened, f)
		}
	}
	return opened, err
}

// forward passes a socket of the namespace to the relay, which owns it from then on.
func (l *loopbackForwards) forward(relay *loopback.Relay, f plan.LoopbackForward, file *os.File) error {
	p, err := relay.Listen(file, f.HostPort)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed { // meanwhile: the relay has closed the port, and close has not counted it
		return net.ErrClosed
	}
	l.open[f] = p
	return nil
}

// start makes the relay if there is none yet.
func (l *loopbackForwards) start() (*loopback.Relay, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	if l.relay == nil {
		relay, err := loopback.New(l.f, guestID, nil)
		if err != nil {
			return nil, err
		}
		l.relay = relay
	}
	return l.relay, nil
}

func (l *loopbackForwards) remove(want func(plan.LoopbackForward) bool) (removed []plan.LoopbackForward) {
	l.change.Lock()
	defer l.change.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for f, p := range l.open {
		if want(f) {
			p.Close()
			l.f.Budget.Give(fdbudget.Listeners, 1)
			delete(l.open, f)
			removed = append(removed, f)
		}
	}
	return removed
}

// close ends all forwards and their connections. A call of add that is waiting for the namespace ends first.
func (l *loopbackForwards) close() {
	l.mu.Lock()
	relay := l.relay
	l.closed = true
	l.f.Budget.Give(fdbudget.Listeners, len(l.open))
	clear(l.open)
	l.mu.Unlock()
	if relay != nil {
		relay.Close()
	}
}

// stats are the counters of the relay; zero before the first forward.
func (l *loopbackForwards) stats() (st loopback.Stats) {
	l.mu.Lock()
	relay := l.relay
	l.mu.Unlock()
	if relay != nil {
		st = relay.Stats()
	}
	return st
}
