package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/pasta"
)

const (
	// hostQuiet is how long no rtnetlink message may arrive before the host's network is read. One change of the host's network
	// produces many messages, and between the first and the last of them the host may have no address at all.
	hostQuiet = 250 * time.Millisecond
	// hostMaxWait is the longest wait for hostQuiet, for a host whose messages do not stop.
	hostMaxWait = 2 * time.Second
	// hostMessage is the size of the read buffer in bytes. What is read is discarded, so a message may be cut off.
	hostMessage = 32 << 10
)

// hostGroups are the multicast groups of rtnetlink(7) that announce changes of links, addresses and routes
// (include/uapi/linux/rtnetlink.h).
const hostGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) |
	1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// hostWatch applies changes of the host's addresses and routes to the namespace. It takes an rtnetlink message only as a hint that
// something has changed, and then reads the whole state.
type hostWatch struct {
	o       *pasta.Options
	box     *rootlessnet.Sandbox
	log     *slog.Logger
	file    *os.File
	changed chan struct{} // capacity 1
	stop    chan struct{}
	wg      sync.WaitGroup

	// Used by the goroutine of run only.
	t4, t6 template           // from which the namespace was configured last
	last   rootlessnet.Config // that was applied last
	out    [2]int             // indexes of the outbound interfaces: an interface may be removed and added again under its name
}

// watchHost starts a hostWatch. t4, t6 and made are what the namespace was configured with; a change of the host since they were
// read is applied at once.
func watchHost(o *pasta.Options, box *rootlessnet.Sandbox, log *slog.Logger, t4, t6 template, made rootlessnet.Config) (*hostWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: hostGroups}); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("follow the host's addresses: %w", err)
	}
	w := &hostWatch{o: o, box: box, log: log, file: os.NewFile(uintptr(fd), "rtnetlink"), changed: make(chan struct{}, 1),
		stop: make(chan struct{}), t4: t4, t6: t6, last: made, out: [2]int{indexOf(o.Out4If), indexOf(o.Out6If)}}
	w.changed <- struct{}{}
	w.wg.Go(w.listen)
	w.wg.Go(w.run)
	return w, nil
}

// indexOf returns the index of an interface, or 0 if there is none of that name.
func indexOf(ifName string) int {
	if ifName == "" {
		return 0
	}
	i, err := net.InterfaceByName(ifName)
	if err != nil {
		return 0
	}
	return i.Index
}

// end makes both goroutines stop; wait waits until they have.
func (w *hostWatch) end() {
	close(w.stop)
	_ = w.file.Close()
}

func (w *hostWatch) wait() { w.wg.Wait() }

func (w *hostWatch) listen() {
	buf := make([]byte, hostMessage)
	for {
		_, err := w.file.Read(buf)
		if errors.Is(err, fs.ErrClosed) {
			return
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: the socket's buffer overflowed and messages were lost
			w.log.Warn("changes of the host's addresses and routes are no longer applied to the namespace", "err", err)
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *hostWatch) run() {
	for {
		select {
		case <-w.changed:
		case <-w.stop:
			return
		}
		latest := time.After(hostMaxWait)
		for quiet := false; !quiet; {
			select {
			case <-w.changed:
			case <-time.After(hostQuiet):
				quiet = true
			case <-latest:
				quiet = true
			case <-w.stop:
				return
			}
		}
		w.follow()
	}
}

// follow reads the host's network and applies it to the namespace if it has changed.
func (w *hostWatch) follow() {
	t4, t6, err := templates(w.o)
	if err != nil {
		w.log.Debug("reading the host's addresses and routes failed", "err", err)
		return
	}
	// While the host has no address of a family the namespace keeps its own, so that connections survive if the host's address
	// comes back.
	if len(t4.addrs) == 0 {
		t4 = w.t4
	}
	if len(t6.addrs) == 0 {
		t6 = w.t6
	}
	has, err := hostAddresses()
	if err != nil {
		w.log.Debug("reading the host's addresses failed", "err", err)
		return
	}
	t4.keep(w.last.Plan.Addrs, false, has)
	t6.keep(w.last.Plan.Addrs, true, has)
	now := config(w.o, t4, t6)
	out := [2]int{indexOf(w.o.Out4If), indexOf(w.o.Out6If)}
	if reflect.DeepEqual(now.Plan, w.last.Plan) && out == w.out {
		return
	}
	// The state counts as applied even if SetNetwork fails: the kernel would refuse it again.
	w.t4, w.t6, w.last, w.out = t4, t6, now, out
	if err := w.box.SetNetwork(now); err != nil {
		w.log.Warn("a change of the host's addresses or routes was applied to the namespace in part only", "err", err)
		return
	}
	w.log.Info("a change of the host's addresses or routes was applied to the namespace", "addresses", now.Plan.Addrs, "gateways", []any{now.Plan.Gateway, now.Plan.Gateway6})
}
