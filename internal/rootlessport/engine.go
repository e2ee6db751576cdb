package rootlessport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"rootlessnet/api"
)

const (
	// requestTimeout bounds one request to a helper, which publishes or closes one port and takes milliseconds for it.
	requestTimeout = 10 * time.Second
	// checkInterval is how often the engine checks that its helper still runs and, if it does not, looks for the next one.
	// Podman replaces the helper when it starts or stops a container.
	checkInterval = time.Second
)

// Engine is a helper of this project that is running and connects a network namespace.
type Engine struct {
	NetNS  uint64 // inode of the namespace
	PID    int    // a process in the namespace; 0 for none
	Socket string // path of the control socket
}

// Finder returns the helpers that are running now.
type Finder func() []Engine

// socketOf returns the control socket of the helper that connects the network namespace with that inode; "" if there is none.
func (find Finder) socketOf(inode uint64) string {
	for _, e := range find() {
		if e.NetNS == inode {
			return e.Socket
		}
	}
	return ""
}

// engine publishes the ports through the helper that connects the namespace, over the helper's control socket. When that
// helper ends, the engine publishes them through its successor.
type engine struct {
	locate func() (socket string) // finds the current helper of the namespace; "": there is none
	ports  []Port
	log    *slog.Logger

	change sync.Mutex  // held while ports are opened or closed
	child  netip.Addr  // address to forward to; the zero value is the guest's own; guarded by change
	client *api.Client // of the current helper; guarded by change
	ids    []int       // of the ports that are open, in their order; fewer than ports after a failure; guarded by change

	quit chan struct{} // closed by close
	wg   sync.WaitGroup
}

// NamespaceInode returns the inode of the network namespace at path, which identifies it.
func NamespaceInode(path string) (uint64, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: no inode", path)
	}
	return st.Ino, nil
}

// newEngine opens all ports or none, through the helper at socket.
func newEngine(locate func() string, socket string, ports []Port, child netip.Addr, log *slog.Logger) (*engine, error) {
	e := &engine{locate: locate, ports: ports, child: child, log: log, quit: make(chan struct{})}
	if err := e.open(socket); err != nil {
		return nil, err
	}
	e.wg.Go(e.watchHelper)
	return e, nil
}

// open publishes all ports through the helper at socket, or none. The caller holds change, or is the only user of e.
func (e *engine) open(socket string) error {
	e.client, e.ids = api.NewClient(socket), nil
	defer e.client.Close()
	for _, p := range e.ports {
		id, err := e.openPort(p)
		if err != nil {
			e.closePorts()
			return fmt.Errorf("listen %s %s: %w", p.Proto, p.Listens()[0], err)
		}
		e.ids = append(e.ids, id)
	}
	return nil
}

// openPort returns the ID that the helper has given the port. The caller holds change.
func (e *engine) openPort(p Port) (id int, err error) {
	spec := api.RootlessKitPortSpec{Proto: p.Proto, ParentPort: int(p.HostPort), ChildPort: int(p.ChildPort)}
	if p.Host.IsValid() {
		spec.ParentIP = p.Host.String()
	}
	if e.child.IsValid() {
		spec.ChildIP = e.child.String()
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	opened, err := e.client.AddRootlessKitPort(ctx, spec)
	return opened.ID, err
}

// closePorts closes the ports that are open. It logs failures only: a helper that has ended has closed its ports itself. The
// caller holds change.
func (e *engine) closePorts() {
	defer e.client.Close()
	for _, id := range e.ids {
		if err := e.closePort(id); err != nil {
			e.log.Debug("published port not closed", "id", id, "err", err)
		}
	}
	e.ids = nil
}

func (e *engine) closePort(id int) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return e.client.RemoveRootlessKitPort(ctx, id)
}

// setChild forwards the ports to another address.
func (e *engine) setChild(a netip.Addr) error {
	e.change.Lock()
	defer e.change.Unlock()
	e.child = a
	e.closePorts()
	return e.reopen()
}

// errNoHelper is returned while no helper connects the namespace.
var errNoHelper = errors.New("the network namespace has no helper")

// reopen opens the ports through the current helper. The caller holds change.
func (e *engine) reopen() error {
	socket := e.locate()
	if socket == "" {
		return errNoHelper
	}
	return e.open(socket)
}

// close closes the ports and waits for the engine's goroutine.
func (e *engine) close() {
	close(e.quit)
	e.wg.Wait()
	e.change.Lock()
	defer e.change.Unlock()
	e.closePorts()
}

// watchHelper opens the ports again once the helper has ended and its successor runs. That may take several attempts: Podman
// replaces the namespace of its bridges together with the helper, and the old helper may still hold the ports. It runs until
// close.
func (e *engine) watchHelper() {
	warned := false
	for {
		select {
		case <-e.quit:
			return
		case <-time.After(checkInterval):
		}
		e.change.Lock()
		if len(e.ids) < len(e.ports) || !e.helperRuns() {
			switch err := e.reopen(); {
			case err == nil:
				warned = false
			case !warned && !errors.Is(err, errNoHelper):
				e.log.Warn("the new helper does not publish the container's ports; trying again every second", "err", err)
				warned = true
			}
		}
		e.change.Unlock()
	}
}

// helperRuns reports whether the helper accepts connections. The caller holds change.
func (e *engine) helperRuns() bool {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return e.client.Reachable(ctx) == nil
}
