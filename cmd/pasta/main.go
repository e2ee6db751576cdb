package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"rootlessnet"
	"rootlessnet/internal/pasta"
	"rootlessnet/internal/textlog"
)

// version is set at link time.
var version = "unknown"

const program = "pasta"

// exitFailure is the exit status after an error of this program, as opposed to that of the command.
const exitFailure = 1

func main() {
	commandChild() // does not return in the process that becomes the command
	o, err := pasta.Parse(os.Args[0], os.Args[1:], ephemeralPorts())
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		if errors.As(err, new(*pasta.UnknownOption)) {
			fmt.Fprint(os.Stderr, pasta.Usage)
		}
		os.Exit(exitFailure)
	case o.Help:
		fmt.Print(pasta.Usage)
		return
	case o.Version:
		fmt.Print(pasta.Version(version))
		return
	}
	if !o.IsCommand() && !o.Foreground {
		d := daemonChild()
		if d == nil {
			os.Exit(daemonise())
		}
		err := run(o, d)
		if err != nil {
			d.failed(err)
			os.Exit(exitFailure)
		}
		return
	}
	code, err := foreground(o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
	}
	os.Exit(code)
}

func foreground(o *pasta.Options) (code int, err error) {
	if !o.IsCommand() {
		if err := run(o, nil); err != nil {
			return exitFailure, err
		}
		return 0, nil
	}
	return runCommand(o)
}

// endSignals returns a channel of the signals that end the program in an orderly way. A daemon ignores SIGHUP, so that it outlives
// the terminal that it was started from.
func endSignals(foreground bool) chan os.Signal {
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT)
	if foreground {
		signal.Notify(signals, syscall.SIGHUP)
	} else {
		signal.Ignore(syscall.SIGHUP)
	}
	return signals
}

// run connects an existing namespace until the namespace ends or a signal arrives. d is nil in the foreground.
func run(o *pasta.Options, d *daemon) error {
	signals := endSignals(d == nil)
	if err := d.adopt(); err != nil {
		return err
	}
	var messages io.Writer = os.Stderr
	if d != nil {
		messages = d
	}
	b, err := connect(o, rootlessnet.Target{PID: o.PID, NetNS: o.NetNS, UserNS: o.UserNS, Outlive: o.NoNetNSQuit && o.NetNS != ""}, messages)
	if err != nil {
		return err
	}
	defer b.close()
	if err := writePID(o.PIDFile, os.Getpid()); err != nil {
		return err
	}
	if d != nil {
		if err := d.ready(o.Stderr); err != nil {
			return err
		}
	}
	select {
	case <-b.box.Done():
		return b.box.Err()
	case <-signals:
		return nil
	}
}

// connection is a connected namespace together with what follows changes on both sides.
type connection struct {
	box    *rootlessnet.Sandbox
	follow *follower  // nil if no port rule has "auto"
	host   *hostWatch // nil if it could not be started
	log    *os.File   // the log file; nil without --log-file
}

func (b *connection) close() {
	// First the goroutines are prevented from starting new requests, then the sandbox is closed, then their end is awaited: a
	// request to a process inside that is stopped (SIGSTOP) ends only with the sandbox.
	if b.follow != nil {
		b.follow.end()
	}
	if b.host != nil {
		b.host.end()
	}
	_ = b.box.Close()
	if b.follow != nil {
		b.follow.wait()
	}
	if b.host != nil {
		b.host.wait()
	}
	if b.log != nil {
		_ = b.log.Close()
	}
}

// connect connects the namespace and opens the ports. It logs to messages, or to the log file of the options.
func connect(o *pasta.Options, t rootlessnet.Target, messages io.Writer) (b *connection, err error) {
	b = new(connection)
	log := slog.New(textlog.New(messages, program, level(o)))
	if o.LogFile != "" {
		w, err := newLogFile(o.LogFile, o.LogSize)
		if err != nil {
			return nil, err
		}
		b.log = w.f
		log = slog.New(textlog.New(w, program, level(o)))
	}
	t4, t6, err := templates(o)
	if err != nil {
		return nil, err
	}
	c := config(o, t4, t6)
	c.Logger = log
	ports := newPortPlan(o)
	defer ports.closeSockets() // those that c does not own, after an error
	if err := ports.bind(&c); err != nil {
		return nil, err
	}
	if b.box, err = rootlessnet.Attach(context.Background(), t, c); err != nil {
		return nil, err
	}
	if err := ports.add(b.box, log); err != nil {
		_ = b.box.Close()
		return nil, err
	}
	b.follow = startFollower(o, b.box, log)
	if b.host, err = watchHost(o, b.box, log, t4, t6, c); err != nil {
		log.Warn(err.Error())
	}
	return b, nil
}

func level(o *pasta.Options) slog.Level {
	switch {
	case o.Debug:
		return slog.LevelDebug
	case o.Quiet:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// templates reads the host's addresses and routes of the families that are enabled.
func templates(o *pasta.Options) (t4, t6 template, err error) {
	first := func(names ...string) string {
		for _, n := range names {
			if n != "" {
				return n
			}
		}
		return ""
	}
	if !o.IPv4Off {
		if t4, err = hostTemplate(false, first(o.Template, o.Out4If)); err != nil {
			return t4, t6, err
		}
	}
	if !o.IPv6Off {
		t6, err = hostTemplate(true, first(o.Template, o.Out6If))
	}
	return t4, t6, err
}

// writePID writes pid to the file at path, or nothing if path is "".
func writePID(path string, pid int) error {
	if path == "" {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(pid)+"\n"), 0o644); err != nil {
		return fmt.Errorf("PID file: %w", err)
	}
	return nil
}
