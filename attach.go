package rootlessnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"rootlessnet/api"
	"rootlessnet/internal/state"
	"rootlessnet/internal/watch"
	"rootlessnet/netns"
	"rootlessnet/tap"
	"rootlessnet/userns"
)

// Target names the network namespace that Attach connects: by PID, NetNS or TAP, exactly one of them.
type Target struct {
	// PID is a process in the namespace. The sandbox ends with it.
	PID int
	// NetNS is the path of the namespace, such as /run/netns/NAME or /proc/PID/ns/net. The sandbox ends when the path is
	// gone or is another namespace.
	NetNS string
	// UserNS is the path of the user namespace to enter first; empty means the one that owns the network namespace,
	// where that is not ours already.
	UserNS string
	// Outlive has the sandbox go on when what PID or NetNS names is gone. It ends by Close then, or with the context.
	Outlive bool
	// TAP is the open device of a namespace that we do not enter: a TAP attached with IFF_NO_PI and not with
	// IFF_MULTI_QUEUE, or a SOCK_SEQPACKET socket that carries frames. Its interface is the caller's to configure, and
	// the sandbox ends when the device does. Attach takes it over.
	TAP *os.File
}

// Port is a published port as it is bound.
type Port = api.Port

// Stats are the counters of a sandbox.
type Stats = api.Stats

// Info describes a sandbox, addresses included.
type Info = api.Sandbox

// Sandbox is a namespace that Attach has connected. Its methods may be called concurrently.
type Sandbox struct {
	s       *sandbox
	watch   *watch.Watch // nil for a TAP
	outlive bool         // what watch tells does not matter
	closing chan struct{}
	once    sync.Once
	done    chan struct{}
	err     error // valid once done is closed
}

// Attach connects a network namespace that somebody else made, and returns when the uplink is there, configured if
// Config.Configure says so, and every port is bound. The namespace's owner needs no privilege; nor does root of the
// user namespace that owns it. Of the Config, what is about a command has no meaning here. When ctx ends, the sandbox is
// closed.
func Attach(ctx context.Context, t Target, c Config) (*Sandbox, error) {
	s := newSandbox(c)
	b, err := s.attach(ctx, t)
	if err != nil {
		s.close()
		s.closeListenerFiles()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	go b.supervise(ctx)
	return b, nil
}

// attach does everything up to the running sandbox. On an error the caller closes s.
func (s *sandbox) attach(ctx context.Context, t Target) (_ *Sandbox, failed error) {
	s.tap = t.TAP // closed by s.close, unless the gateway takes it over
	var err error
	if s.plan, err = s.cfg.attachPlan(&t, netlinkHost{}); err != nil {
		return nil, err
	}
	s.warnPlan()
	b := &Sandbox{s: s, outlive: t.Outlive, closing: make(chan struct{}), done: make(chan struct{})}
	if t.TAP == nil {
		// The namespaces stay open for as long as the sandbox is: whether a path still leads there is a question of them.
		if s.ns0, err = userns.OpenTarget(t.PID, t.NetNS, t.UserNS); err != nil {
			return nil, err
		}
		w, err := s.ns0.Watch()
		if err != nil {
			return nil, err
		}
		b.watch = w
		defer func() {
			if failed != nil {
				w.Close() // before the descriptors it looks at
			}
		}()
	}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	if err := s.update(s.describe); err != nil {
		return nil, err
	}
	s.net.follow(s)
	return b, nil
}

// adopt is the link of a Target's TAP.
func (s *sandbox) adopt() (file *os.File, kind string, can netns.LinkResult, err error) {
	info, err := tap.Adopt(s.tap, s.plan.mtu)
	if err != nil {
		return nil, "", can, err
	}
	if info.Name != "" {
		s.plan.ifName = info.Name
	}
	file, s.tap = s.tap, nil
	return file, string(info.Kind), netns.LinkResult{CSum: info.CSum, TSO: info.TSO, USO: info.USO, MAC: info.MAC}, nil
}

// supervise waits for the end, whichever comes first, and undoes everything.
func (b *Sandbox) supervise(ctx context.Context) {
	var gone, agent <-chan struct{}
	if b.watch != nil {
		gone, agent = b.watch.C(), b.s.ns.Ended()
	}
	if b.outlive {
		gone = nil
	}
	select {
	case <-gone:
	case <-b.closing:
	case <-ctx.Done():
		b.err = ctx.Err()
	case <-agent:
		b.err = errors.New("our process inside the namespace has ended")
	case err := <-b.s.linkEnd:
		if b.watch != nil { // of a TAP that was handed to us it is the orderly end
			b.err = fmt.Errorf("the link %s has ended: %w", b.s.plan.ifName, err)
		}
	}
	if b.watch != nil {
		b.watch.Close()
	}
	b.s.close()
	b.s.closeListenerFiles()
	close(b.done)
}

// ID and Name are how other programs find the sandbox (rootless-net ps). Both are empty where it could not be entered
// there, see Config.RuntimeDir.
func (b *Sandbox) ID() string {
	if b.s.entry == nil {
		return ""
	}
	return b.s.entry.ID()
}

// Name is the sandbox's name, see ID.
func (b *Sandbox) Name() string {
	if b.s.entry == nil {
		return ""
	}
	return b.s.entry.Name()
}

// Info describes the sandbox as it is now.
func (b *Sandbox) Info() Info { return (*backend)(b.s).Inspect() }

// ResolvConf is the text of a resolv.conf for what runs in the namespace: the sandbox's resolver, and the host's search
// list and options or those of the Config.
func (b *Sandbox) ResolvConf() []byte { return b.s.net.resolvConf() }

// HostsFile is the text of a hosts file for what runs in the namespace.
func (b *Sandbox) HostsFile(hostname string) []byte { return b.s.net.hostsFile(hostname) }

// PID is that of our process inside the namespace, whose /proc/PID/net shows it; 0 for a TAP.
func (b *Sandbox) PID() int {
	if b.s.ns == nil {
		return 0
	}
	return b.s.ns.InitPID()
}

// AddPort publishes all ports of a spec (ParsePortSpec) or none, and returns what was bound.
func (b *Sandbox) AddPort(spec string) ([]Port, error) {
	return (*backend)(b.s).AddPorts(context.Background(), spec)
}

// RemovePort closes the published ports that a spec names; what it leaves out may be anything.
func (b *Sandbox) RemovePort(spec string) ([]Port, error) {
	return (*backend)(b.s).RemovePorts(context.Background(), spec)
}

// AddMappings publishes all mappings or none, and returns what was bound.
func (b *Sandbox) AddMappings(mappings ...PortMapping) ([]Port, error) {
	return (*backend)(b.s).addMappings(mappings)
}

// RemovePorts closes the published ports for which want says so, and returns them.
func (b *Sandbox) RemovePorts(want func(Port) bool) []Port {
	return (*backend)(b.s).removePorts(want)
}

// Ports lists what is published now.
func (b *Sandbox) Ports() []Port { return (*backend)(b.s).Ports() }

// Stats reads the counters.
func (b *Sandbox) Stats() Stats { return (*backend)(b.s).Stats() }

// Done is closed when the sandbox has ended, for whatever reason, and everything of it is undone.
func (b *Sandbox) Done() <-chan struct{} { return b.done }

// Err says why the sandbox has ended: nil when the namespace went or Close was called, the context's error when that
// ended. Before Done it is nil.
func (b *Sandbox) Err() error {
	select {
	case <-b.done:
		return b.err
	default:
		return nil
	}
}

// Close undoes what Attach made and waits until nothing of it is left. It returns Err, and may be called more than once.
func (b *Sandbox) Close() error {
	b.once.Do(func() { close(b.closing) })
	<-b.done
	return b.err
}

// openState opens the state directory. An attached sandbox may run where there is none to be had, a command may not.
func (s *sandbox) openState() error {
	dir, err := state.Open(s.cfg.RuntimeDir)
	if err != nil && s.plan.network == networkAttach && s.cfg.RuntimeDir == "" && s.plan.name == "" {
		s.log.Warn("not listed among the sandboxes: " + err.Error())
		return nil
	}
	s.dir = dir
	return err
}

// update changes the record where there is one.
func (s *sandbox) update(f func(*state.Record)) error {
	if s.entry == nil {
		return nil
	}
	return s.entry.Update(f)
}

// shortID is the beginning of the sandbox's id, empty where it has none.
func (s *sandbox) shortID() string {
	if s.entry == nil {
		return ""
	}
	return state.ShortID(s.entry.ID())
}

// linkEnded is called when the link device ends by itself.
func (s *sandbox) linkEnded(err error) {
	select {
	case s.linkEnd <- err:
	default:
	}
}
