package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"rootlessnet/api"
	"rootlessnet/internal/hostnet"
	"rootlessnet/plan"
)

// Stats are the counters of a sandbox.
type Stats = api.Stats

// Info describes a sandbox, addresses included: what its control socket answers, with the ports as Attached.Ports lists them.
type Info struct {
	api.Sandbox
	Ports []plan.Port // in place of those of api.Sandbox
}

// Attached is a namespace that Attach has connected. Its methods may be called concurrently.
type Attached struct {
	s       *sandbox
	closing chan struct{} // closed by Close
	once    sync.Once
	done    chan struct{}
	err     error // valid once done is closed
}

// Attach connects a network namespace that another program made. It returns when the uplink exists, configured if
// Config.Configure says so, and every port is bound. The owner of the namespace needs no privilege, and neither does root of
// the user namespace that owns it. The fields of the Config that are about a command have no meaning here. When ctx ends,
// the sandbox is closed.
func Attach(ctx context.Context, t plan.Target, c plan.Config) (*Attached, error) {
	s := newSandbox(c)
	if err := s.attach(ctx, t); err != nil {
		s.close(ExitFailure, err)
		s.closeListenerFiles()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	a := &Attached{s: s, closing: make(chan struct{}), done: make(chan struct{})}
	go a.supervise(ctx)
	return a, nil
}

// attach does everything up to the running sandbox. On an error the caller closes s.
func (s *sandbox) attach(ctx context.Context, t plan.Target) (err error) {
	s.target.tap = t.TAP // closed by s.close unless the gateway takes it over
	if s.plan, err = plan.ResolveAttach(&s.cfg, &t, hostnet.Routes{}); err != nil {
		return err
	}
	s.logWarnings()
	if err := s.target.open(t); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if err := s.record.update(s.describe); err != nil {
		return err
	}
	s.network.Follow()
	return nil
}

// supervise waits for the first cause of an end, and undoes everything.
func (a *Attached) supervise(ctx context.Context) {
	s := a.s
	var agent <-chan struct{}
	if s.ns != nil {
		agent = s.ns.Ended()
	}
	select {
	case <-s.target.ended():
	case <-a.closing:
	case <-ctx.Done():
		a.err = ctx.Err()
	case <-agent:
		a.err = errors.New("the agent process inside the namespace has ended")
	case err := <-s.linkEnd:
		if s.ns != nil { // the device of a Target.TAP ends in the normal course of things
			_, name, _ := s.network.LinkInfo()
			a.err = fmt.Errorf("the link %s has ended: %w", name, err)
		}
	}
	exitCode := 0
	if a.err != nil {
		exitCode = 1
	}
	s.close(exitCode, a.err)
	s.closeListenerFiles()
	close(a.done)
}

// ID is the sandbox's id, 64 hexadecimal digits, by which other programs find it (rootless-net ps). It is empty if there is
// no state directory, see Config.RuntimeDir.
func (a *Attached) ID() string { return a.s.record.id() }

// Name is the sandbox's name; empty like ID.
func (a *Attached) Name() string { return a.s.record.name() }

// Info describes the sandbox as it is now.
func (a *Attached) Info() Info {
	return Info{Sandbox: (&backend{a.s}).Inspect(), Ports: a.s.network.Ports()}
}

// ResolvConf is the text of a resolv.conf for programs in the namespace: the sandbox's resolver, and the host's search list
// and options or those of the Config.
func (a *Attached) ResolvConf() []byte { return a.s.network.ResolvConf() }

// HostsFile is the text of a hosts file for programs in the namespace.
func (a *Attached) HostsFile(hostname string) []byte { return a.s.network.HostsFile(hostname) }

// PID is the pid of the agent process inside the namespace, where /proc/PID/net shows it; 0 for a TAP.
func (a *Attached) PID() int {
	if a.s.ns == nil {
		return 0
	}
	return a.s.ns.InitPID()
}

// AddPort publishes all ports of a spec (ParsePortSpec) or none, and returns what was bound.
func (a *Attached) AddPort(spec string) ([]plan.Port, error) { return a.s.addSpec(spec) }

// RemovePort closes the published ports that a spec names; what it leaves out may have any value.
func (a *Attached) RemovePort(spec string) ([]plan.Port, error) { return a.s.removeSpec(spec) }

// AddMappings publishes all mappings or none, and returns what was bound.
func (a *Attached) AddMappings(mappings ...plan.PortMapping) ([]plan.Port, error) {
	return a.s.addMappings(mappings)
}

// RemovePorts closes the published ports for which want returns true, and returns them.
func (a *Attached) RemovePorts(want func(plan.Port) bool) []plan.Port { return a.s.removePorts(want) }

// Ports lists the ports that are published now.
func (a *Attached) Ports() []plan.Port { return a.s.network.Ports() }

// AddLoopbackForwards opens what can be opened of list, and returns that; err is the first failure, which wraps the errno of
// bind(2). Privileged ports need no privilege, because they are bound inside the namespace. A sandbox that was made of a TAP
// can have none.
func (a *Attached) AddLoopbackForwards(list ...plan.LoopbackForward) (opened []plan.LoopbackForward, err error) {
	return a.s.network.AddLoopbackForwards(list...)
}

// RemoveLoopbackForwards closes the forwards for which want returns true, and returns them. Established connections go on.
func (a *Attached) RemoveLoopbackForwards(want func(plan.LoopbackForward) bool) []plan.LoopbackForward {
	return a.s.network.RemoveLoopbackForwards(want)
}

// LoopbackForwards lists the forwards that are open now.
func (a *Attached) LoopbackForwards() []plan.LoopbackForward { return a.s.network.LoopbackForwards() }

// SetNetwork changes the network of a sandbox that was made with a Plan, while it runs. Of c it takes Plan and the fields that
// begin with Outbound, and nothing else. The addresses, routes and special addresses of the Plan are in force from then on,
// inside the namespace too if Configure was set. Hardware addresses, the addresses that answer DNS and the switches (NoTCP and
// the like) remain those of the beginning, and an address family that was off then stays off. Connections go on by addresses
// that are there before and after. An error means that nothing has changed, or names what could not be changed in the namespace.
func (a *Attached) SetNetwork(c plan.Config) error { return a.s.setNetwork(&c) }

// Stats reads the counters.
func (a *Attached) Stats() Stats { return (&backend{a.s}).Stats() }

// Done is closed when the sandbox has ended, for whatever reason, and everything it had made is undone.
func (a *Attached) Done() <-chan struct{} { return a.done }

// Err returns why the sandbox has ended: nil if the namespace has ended or Close was called, the context's error if that ended.
// Before Done it is nil.
func (a *Attached) Err() error {
	select {
	case <-a.done:
		return a.err
	default:
		return nil
	}
}

// Close undoes what Attach made and waits until nothing of it is left. It returns Err, and may be called more than once.
func (a *Attached) Close() error {
	a.once.Do(func() { close(a.closing) })
	<-a.done
	return a.err
}
