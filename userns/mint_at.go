package userns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MintAt makes the network namespace at path fit for sockets that speak for somebody outside, and begins a stock of them.
// It is for one who has capabilities over the namespace, and no Sandbox in it: the helper of a container's ports. Close of
// the Minter puts back what was changed. There is one at a time, a Diversion included: another is waited for, for
// predecessorPatience.
//
// What a server in the namespace answers finds its way by the mark that its connections inherit (markSpeak): two sysctls,
// and a rule with a local route. Nothing of this changes where connections of the namespace's own lead.
func MintAt(path string) (*Minter, error) {
	fail := func(err error) (*Minter, error) {
		return nil, &Error{Op: "speak for clients in the network namespace " + path, Err: err}
	}
	ns, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer ns.Close()
	inside, outside, err := minterPair()
	if err != nil {
		return fail(err)
	}
	type foothold struct {
		ipv6 bool
		err  error
	}
	made := make(chan foothold)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		// Never unlocked: the thread, which stays in the namespace, ends with the goroutine.
		runtime.LockOSThread()
		var h foothold
		var changed undo
		if h.err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); h.err == nil {
			h.ipv6, h.err = speakHere(&changed)
		}
		made <- h
		if h.err == nil {
			serveMinter(inside)
		}
		changed.run()
	}()
	h := <-made
	if h.err != nil {
		inside.Close()
		outside.Close()
		<-gone
		return fail(h.err)
	}
	m, err := newMinter(outside, h.ipv6)
	if err != nil {
		inside.Close()
		<-gone
		return fail(err)
	}
	m.wg.Go(func() { <-gone })
	return m, nil
}

// predecessorPatience is for the helper of a container that was started again in the same namespace, which has its
// connections to end and what it has changed to put back.
const predecessorPatience = 5 * time.Second

// speakHere sets the calling thread's namespace up. What was changed before an error is in u.
func speakHere(u *undo) (ipv6 bool, err error) {
	// First of all, and let go of last: who has this address has what follows. As with divert, which takes it too.
	lock, err := divertListener(netip.AddrPortFrom(divertAddr4, divertPort))
	for end := time.Now().Add(predecessorPatience); errors.Is(err, unix.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		lock, err = divertListener(netip.AddrPortFrom(divertAddr4, divertPort))
	}
	if err != nil {
		return false, fmt.Errorf("listen on %v, as a sign for others: %w", divertAddr4, err)
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
	if err := setLoopbackUp(); err != nil { // it stays up: what is there by now relies on it
		return false, fmt.Errorf("set lo up: %w", err)
	}
	if err := divertRoutes([]int{netlink.FAMILY_V4}, 0, u); err != nil {
		return false, fmt.Errorf("routing rule: %w", err)
	}
	var six undo
	if err := divertRoutes([]int{netlink.FAMILY_V6}, 0, &six); err != nil { // IPv6 is off, in the kernel or here
		six.run()
		return false, nil
	}
	u.add(six.run)
	return true, nil
}
