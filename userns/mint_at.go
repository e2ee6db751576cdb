package userns

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// MintAt makes the network namespace at path fit for sockets that speak for somebody outside, and begins a stock of them.
// It is for one who has capabilities over the namespace, and no Sandbox in it: the helper of a container's ports. Close of
// the Minter puts back what was changed.
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

// speakHere sets the calling thread's namespace up. What was changed before an error is in u.
func speakHere(u *undo) (ipv6 bool, err error) {
	_, err = os.Stat("/proc/sys/net/ipv6")
	ipv6 = err == nil
	err = changeSysctls([]sysctl{
		{name: "net/ipv4/tcp_fwmark_accept", value: "1"},
		{name: "net/ipv4/fwmark_reflect", value: "1"},
		{name: "net/ipv6/fwmark_reflect", value: "1", optional: !ipv6},
	}, u)
	if err != nil {
		return false, err
	}
	if err := setLoopbackUp(); err != nil { // it stays up: what is there by now relies on it
		return false, err
	}
	return ipv6, divertRoutes(ipv6, 0, u)
}
