package topo

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// NS is a network namespace. Its methods may be called from any goroutine.
type NS struct {
	file *os.File
	jobs chan func() // run on the namespace's forking thread, which holds no capability
	done chan struct{}
}

// NewNS makes an empty network namespace beside those of a Topo, such as a container's; the caller closes it. Enter must
// have returned before.
func NewNS() (*NS, error) {
	n := &NS{jobs: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	go n.forker(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("topo: new network namespace: %w", err)
	}
	return n, nil
}

// forker owns the thread on which NS.Command forks. It lives as long as the namespace, because the pdeathsig of what
// it starts is tied to it, and the thread ends with it, because a thread without capabilities is of no use to other goroutines.
func (n *NS) forker(ready chan<- error) {
	runtime.LockOSThread()
	defer close(n.done)
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		n.file, err = os.Open("/proc/thread-self/ns/net")
	}
	if err == nil {
		err = dropCapabilities()
	}
	ready <- err
	if err != nil {
		return
	}
	for job := range n.jobs {
		job()
	}
}

// Do runs fn on a thread inside the namespace, with all capabilities. fn must not leave work to other goroutines
// that needs to be inside.
func (n *NS) Do(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine instead of going back to the scheduler in a foreign namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("topo: setns: %w", err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// Listen is net.Listen inside. addr must be literal.
func (n *NS) Listen(network, addr string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket inside. addr must be literal.
func (n *NS) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = n.Do(func() error {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

// Dial is net.DialTimeout inside. addr must be literal.
func (n *NS) Dial(network, addr string, timeout time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: timeout}
	return n.DialWith(d, network, addr)
}

// DialWith is Dial with a dialer of the caller's, such as one with a local address.
func (n *NS) DialWith(d net.Dialer, network, addr string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = d.DialContext(context.Background(), network, addr)
		return err
	})
	return c, err
}

// Sysctl writes a value below /proc/sys/net of the namespace; name is a path such as "ipv4/ping_group_range".
func (n *NS) Sysctl(name, value string) error {
	return n.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644) })
}

// Read reads a file as a thread inside sees it, such as /proc/thread-self/net/sockstat.
func (n *NS) Read(path string) (text []byte, err error) {
	err = n.Do(func() error {
		text, err = os.ReadFile(path)
		return err
	})
	return text, err
}

// Cmd is an exec.Cmd that starts inside a namespace without capabilities. Use its own Start, Run, Output and
// CombinedOutput only.
type Cmd struct {
	*exec.Cmd
	ns *NS
}

// Command prepares a program that will run inside the namespace as the ordinary user, without capabilities. It is
// killed when the namespace is closed; processes it leaves behind are not.
func (n *NS) Command(argv ...string) *Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return &Cmd{Cmd: cmd, ns: n}
}

// Start is exec.Cmd.Start inside the namespace.
func (c *Cmd) Start() error {
	result := make(chan error, 1)
	c.ns.jobs <- func() { result <- c.Cmd.Start() }
	return <-result
}

// Run is exec.Cmd.Run inside the namespace.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// FD is the namespace's file descriptor, for netlink; valid until Close.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Close ends the forking thread, which kills what it started, and closes the namespace.
func (n *NS) Close() {
	close(n.jobs)
	<-n.done
	n.file.Close()
}
