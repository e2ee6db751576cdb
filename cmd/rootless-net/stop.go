package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/state"
)

const (
	// stopSeconds is how long a command may take to end after SIGTERM, by default. docker stop has the same.
	stopSeconds = 10
	// killPatience is how long the kernel may take to end a supervisor after SIGKILL.
	killPatience = 5 * time.Second
)

func (p *program) stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop sandboxes: send SIGTERM, or its --stop-signal, to the command, and kill everything if it does not end in time",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if seconds < 0 {
				return usageError{fmt.Errorf("invalid time: %d", seconds)}
			}
			var errs []error
			for _, ref := range args {
				if err := p.stop(cmd.Context(), ref, time.Duration(seconds)*time.Second); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(p.stdout, ref)
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: p.completeNames,
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", stopSeconds, "`seconds` to wait before killing it")
	return cmd
}

// stop ends the supervisor of a sandbox, which passes SIGTERM, or the sandbox's own stop signal, on to the command.
func (p *program) stop(ctx context.Context, ref string, patience time.Duration) error {
	r, client, err := p.find(ref)
	if err != nil {
		return err
	}
	client.Close()
	fd, err := r.Supervisor.Open()
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended since find
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	defer unix.Close(fd)
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{stopSignal(r), patience}, {unix.SIGKILL, killPatience}} {
		if err := unix.PidfdSendSignal(fd, step.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		if ended, err := waitEnd(ctx, fd, step.wait); ended || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: the supervisor (process %d) does not end after SIGKILL", r.Name, r.Supervisor.PID)
}

// stopSignal is the signal that asks the command of a sandbox to end; its supervisor passes it on.
func stopSignal(r state.Record) unix.Signal {
	if r.StopSignal > 0 {
		return unix.Signal(r.StopSignal)
	}
	return unix.SIGTERM
}

// waitEnd waits until a process has ended, at most for the duration wait.
func waitEnd(ctx context.Context, pidfd int, wait time.Duration) (ended bool, err error) {
	const step = 100 * time.Millisecond
	for end := time.Now().Add(wait); ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		left := max(0, min(step, time.Until(end)))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return false, err
		}
		if n > 0 {
			return true, nil
		}
		if !time.Now().Before(end) {
			return false, nil
		}
	}
}
