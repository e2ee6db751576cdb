package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OpenPoolAt prepares the network namespace at path for transparent sockets and opens a pool of them; the first have been
// requested. It is for a program with capabilities over the namespace and no process in it: the port helper of a container.
// Pool.Close undoes what was changed. maxBatch is PoolOptions.MaxBatch. The error is an *Error.
//
// What a server in the namespace answers is routed to lo by the mark that its connections inherit (markTransparent): two
// sysctls, and a policy rule with a local route. The namespace's own connections are not affected.
//
// A namespace has one such pool or Redirect at a time. OpenPoolAt waits predecessorPatience for the end of another.
func OpenPoolAt(path string, maxBatch int) (*Pool, error) {
	fail := func(err error) (*Pool, error) {
		return nil, &Error{Op: "open transparent sockets in the network namespace " + path, Err: err}
	}
	thread, err := Enter(path)
	if err != nil {
		return nil, err
	}
	var changed undo
	var ipv6 bool
	err = thread.Do(func() (err error) {
		if ipv6, err = prepareForPool(&changed); err != nil {
			changed.run()
		}
		return err
	})
	if err != nil {
		thread.Close()
		return fail(err)
	}
	inside, outside, err := poolPair()
	var p *Pool
	if err == nil {
		if p, err = NewPool(outside, PoolOptions{IPv6: ipv6, MaxBatch: maxBatch}); err != nil {
			inside.Close()
		}
	}
	if err != nil {
		_ = thread.Do(func() error { changed.run(); return nil })
		thread.Close()
		return fail(err)
	}
	p.wg.Go(func() {
		_ = thread.Do(func() error {
			servePool(inside) // until p is closed
			changed.run()
			return nil
		})
		thread.Close()
	})
	return p, nil
}

const (
	// predecessorPatience is for the helper of a container that was started again in the same namespace: its predecessor has
	// to end connections and to restore the namespace.
	predecessorPatience = 5 * time.Second
	predecessorPoll     = 5 * time.Millisecond
)

// prepareForPool prepares the calling thread's namespace. u gets the steps back, also when there is an error.
func prepareForPool(u *undo) (ipv6 bool, err error) {
	// The redirect's IPv4 address is the lock of the namespace (see Redirect.held), taken first and released last.
	addr := netip.AddrPortFrom(redirectAddr4, redirectPort)
	lock, err := redirectListener(addr)
	for end := time.Now().Add(predecessorPatience); errors.Is(err, unix.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(predecessorPoll)
		lock, err = redirectListener(addr)
	}
	if err != nil {
		return false, fmt.Errorf("listen on %v, which shows other helpers that this one is here: %w", redirectAddr4, err)
	}
	u.add(func() { _ = lock.Close() })
	err = changeSysctls([]sysctl{
		{name: "net/ipv4/tcp_fwmark_accept", value: "1"},
		{name: "net/ipv4/fwmark_reflect", value: "1"},
		{name: "net/ipv6/fwmark_reflect", value: "1", optional: true},
	}, u)
	if err != nil {
		return false, err
	}
	if err := setLoopbackUp(); err != nil { // it stays up afterwards: other programs may rely on it by then
		return false, fmt.Errorf("set lo up: %w", err)
	}
	if err := redirectRoutes([]int{netlink.FAMILY_V4}, 0, u); err != nil {
		return false, fmt.Errorf("routing rule: %w", err)
	}
	var undo6 undo
	if err := redirectRoutes([]int{netlink.FAMILY_V6}, 0, &undo6); err != nil { // IPv6 is off, in the kernel or here
		undo6.run()
		return false, nil
	}
	u.add(undo6.run)
	return true, nil
}
