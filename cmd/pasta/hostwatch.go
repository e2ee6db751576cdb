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
	// hostQuiet is how long the host must say nothing before its network is read: a change is many messages, and between
	// the first and the last of them a host may have no address at all.
	hostQuiet = 250 * time.Millisecond
	// hostPatience bounds that where the messages do not end.
	hostPatience = 2 * time.Second
	// hostMessage is room for what is read at once and thrown away.
	hostMessage = 32 << 10
)

// hostGroups are what the kernel is asked to tell of (include/uapi/linux/rtnetlink.h).
const hostGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) |
	1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// hostWatch follows the addresses and routes of the host, and has the namespace's follow them. What is said is taken as a
// hint that something may have changed; what is true is read.
type hostWatch struct {
	o       *pasta.Options
	box     *rootlessnet.Sandbox
	log     *slog.Logger
	file    *os.File
	changed chan struct{} // has room for one
	stop    chan struct{}
	wg      sync.WaitGroup

	// The goroutine of run has these.
	t4, t6 template // as the namespace has them
	last   rootlessnet.Config
	out    [2]int // indexes of the outbound interfaces, which may go and come back
}

// watchHost begins with what the namespace was made of; what has changed since then is found at once.
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

// indexOf is 0 for none.
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

// end has it stop; wait waits until it has.
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
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: there was more than it could keep for us
			w.log.Warn("the host's addresses are not followed any more", "err", err)
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
		latest := time.After(hostPatience)
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

// follow reads the host's network, and changes the namespace's if it is another.
func (w *hostWatch) follow() {
	t4, t6, err := templates(w.o)
	if err != nil {
		w.log.Debug("the host's network was not read", "err", err)
		return
	}
	// A host without a network has none to be followed into: what was there is as good as nothing, and may come back.
	if len(t4.addrs) == 0 {
		t4 = w.t4
	}
	if len(t6.addrs) == 0 {
		t6 = w.t6
	}
	now := config(w.o, t4, t6)
	out := [2]int{indexOf(w.o.Out4If), indexOf(w.o.Out6If)}
	if reflect.DeepEqual(now.Plan, w.last.Plan) && out == w.out {
		return
	}
	// Whatever comes of it: what the kernel refuses today it refuses when asked again.
	w.t4, w.t6, w.last, w.out = t4, t6, now, out
	if err := w.box.SetNetwork(now); err != nil {
		w.log.Warn("the host's network has changed, the namespace's has not followed in full", "err", err)
		return
	}
	w.log.Info("the host's network has changed, and the namespace's", "addresses", now.Plan.Addrs, "gateways", []any{now.Plan.Gateway, now.Plan.Gateway6})
}
