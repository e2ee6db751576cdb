package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/internal/helper"
	"rootlessnet/internal/slirp"
	"rootlessnet/internal/textlog"
	"rootlessnet/internal/watch"
)

// version is set at link time.
var version = "unknown"

const program = "slirp4netns"

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
)

func main() {
	o, err := slirp.Parse(os.Args[0], os.Args[1:], slirp.InterfaceAddress)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		fmt.Print(slirp.Usage)
		os.Exit(exitFailure)
	case o.Help:
		fmt.Print(slirp.Usage)
		os.Exit(exitOK)
	case o.Version:
		fmt.Print(slirp.Version(version))
		os.Exit(exitOK)
	}
	for _, w := range o.Warnings {
		fmt.Println(w)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, program+":", err)
		os.Exit(exitFailure)
	}
}

// run connects the namespace until it ends, a signal arrives, or an event occurs on the exit descriptor.
func run(o *slirp.Options) error {
	// A write to an output that the caller has closed must not end the program.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	tapFD := -1
	if o.Type == slirp.ByTAPFD {
		tapFD = o.TAPFD
	}
	files, err := helper.Adopt(o.ExitFD, o.ReadyFD, tapFD)
	if err != nil {
		return err
	}
	exit, ready, tap := files[0], files[1], files[2]
	defer exit.Close() // the file is used until then, or its finalizer would close the descriptor; it may be nil
	ended, err := watchExit(exit)
	if err != nil {
		return err
	}
	log := slog.New(textlog.New(os.Stderr, program, slog.LevelWarn))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if o.Type == slirp.ByBESS {
		if tap, err = acceptVM(o.Path, ended, signals); err != nil || tap == nil {
			return err
		}
	}
	box, err := rootlessnet.Attach(ctx, target(o, tap), config(o, log))
	if err != nil {
		return err
	}
	defer box.Close()
	if o.APISocket != "" {
		api, err := slirp.Listen(o.APISocket, o.Guest(), forwarder{box}, log)
		if err != nil {
			return err
		}
		defer api.Close()
	}
	if err := helper.Ready(ready); err != nil {
		log.Warn(err.Error())
	}
	select {
	case <-ended:
	case <-signals:
	case <-box.Done():
		return box.Err()
	}
	return nil
}

// watchExit returns a channel that is closed at any event on f; if f is nil the channel is nil, which never becomes ready.
func watchExit(f *os.File) (<-chan struct{}, error) {
	if f == nil {
		return nil, nil
	}
	w, err := watch.File(f)
	if errors.Is(err, unix.EPERM) { // epoll does not support a regular file or /dev/null; poll(2) reports them readable at once
		closed := make(chan struct{})
		close(closed)
		return closed, nil
	}
	if err != nil {
		return nil, fmt.Errorf("exit descriptor: %w", err)
	}
	return w.C(), nil // never closed: the process watches f until it exits
}

// forwarder implements slirp.Forwarder with the port mappings of the sandbox.
type forwarder struct{ box *rootlessnet.Sandbox }

func (f forwarder) Add(p slirp.Forward) error {
	_, err := f.box.AddMappings(rootlessnet.PortMapping{
		Proto: p.Proto, HostIP: p.HostAddr, HostPort: p.HostPort, HostPortEnd: p.HostPort, GuestIP: p.GuestAddr, GuestPort: p.GuestPort,
	})
	return err
}

func (f forwarder) Remove(p slirp.Forward) error {
	removed := f.box.RemovePorts(func(have rootlessnet.Port) bool {
		return have.Proto == p.Proto && have.HostIP == p.HostAddr && have.HostPort == p.HostPort
	})
	if len(removed) == 0 {
		return errors.New("no such port is open")
	}
	return nil
}
