package sandbox

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"

	"rootlessnet/internal/signals"
	"rootlessnet/userns"
)

// commandSignals passes signals of the caller (Config.Signals) to the command. One method at a time receives: keep until its
// stop is called, then forward until the command has ended, then waitEnd.
type commandSignals struct {
	in   <-chan os.Signal // nil: there are none
	kept []os.Signal      // received before the command started; written by keep, read by forward
	end  syscall.Signal   // received before the command started, and asks a program to end; 0 for none; read after keep's stop
	stop syscall.Signal   // what the command gets for SIGTERM (Config.StopSignal)

	jobControl bool // Config.JobControl
}

// keep receives the signals that come before the command has started: one that requests a program to end calls cancel; the
// others are kept for the command, one of each kind, as a kernel keeps pending signals. stop ends it and may be called twice.
func (c *commandSignals) keep(cancel context.CancelFunc) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case sig := <-c.in:
				if sig == syscall.SIGTSTP {
					c.obeyStop()
				} else if signals.Terminates(sig) {
					c.end, _ = sig.(syscall.Signal)
					cancel()
				} else if !slices.Contains(c.kept, sig) {
					c.kept = append(c.kept, sig)
				}
			case <-quit:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
	})
}

// interrupted says whether a signal has ended the start, of which err came, and the exit code that stands for it. A terminal sends
// its signals to init as well, which may have ended of it first.
func (c *commandSignals) interrupted(err error) (code int, yes bool) {
	var e *userns.InterruptedError
	switch {
	case c.end != 0:
		return ExitSignalBase + int(c.end), true
	case errors.As(err, &e):
		return ExitSignalBase + int(e.Signal), true
	}
	return 0, false
}

// obeyStop stops this process by the SIGTSTP that it has received, if it is a job on behalf of the command.
func (c *commandSignals) obeyStop() {
	if c.jobControl {
		signals.StopSelf()
	}
}

// forward sends the kept signals and those that come to the command pid, until ended is closed.
func (c *commandSignals) forward(ns *userns.Sandbox, pid int, ended <-chan struct{}) {
	send := func(sig os.Signal) {
		if n, ok := sig.(syscall.Signal); ok {
			if n == syscall.SIGTERM && c.stop != 0 {
				n = c.stop
			}
			_ = ns.Signal(n)
		}
	}
	for _, sig := range c.kept {
		send(sig)
	}
	for {
		select {
		case sig := <-c.in:
			if sig == syscall.SIGTSTP && c.jobControl && signals.SharesGroup(pid) {
				signals.StopSelf() // the terminal, if it has sent it, stops the command as well
			} else {
				send(sig)
			}
		case <-ended:
			return
		}
	}
}

// waitEnd returns when idle is closed, ctx ends, or a signal requests the program to end.
func (c *commandSignals) waitEnd(ctx context.Context, idle <-chan struct{}) {
	for {
		select {
		case <-idle:
			return
		case <-ctx.Done():
			return
		case sig := <-c.in:
			if sig == syscall.SIGTSTP {
				c.obeyStop()
			} else if signals.Terminates(sig) {
				return
			}
		}
	}
}
