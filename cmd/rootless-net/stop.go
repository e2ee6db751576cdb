package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/api"
	"rootlessnet/internal/state"
)

const (
	// stopSeconds is how long a command may take to end after SIGTERM, by default. docker stop has the same.
	stopSeconds = 10
	// killPatience is how long the kernel may take to end a supervisor after SIGKILL.
	killPatience = 5 * time.Second
	// commandKillPatience is how long a supervisor may take to end after its command was killed. Other sandboxes that have joined
	// its network keep it longer.
	commandKillPatience = 2 * time.Second
)

func (p *program) stopCommand() *cobra.Command {
	var seconds int
	var name string
	cmd := &cobra.Command{
		Use:   "stop [flags] NAME...",
		Short: "Stop sandboxes: send SIGTERM to the command, and kill everything if it does not end in time",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if seconds < -1 {
				return usageError{fmt.Errorf("invalid time: %d", seconds)}
			}
			var sig syscall.Signal
			if name != "" {
				var err error
				if sig, err = rootlessnet.ParseSignal(name); err != nil {
					return usageError{err}
				}
			}
			return p.each(args, func(ref string) error {
				dir, r, err := p.findAny(ref)
				if err != nil || r.Status == state.Exited { // docker stop succeeds for what has ended
					return err
				}
				patience := time.Duration(seconds) * time.Second
				if seconds < 0 {
					patience = math.MaxInt64
				}
				return p.end(cmd.Context(), dir, r, sig, patience)
			})
		},
		ValidArgsFunction: p.completeNames,
	}
	flags := cmd.Flags()
	flags.IntVarP(&seconds, "time", "t", stopSeconds, "`seconds` to wait before killing it; -1: for ever")
	flags.IntVar(&seconds, "timeout", stopSeconds, "the same as --time")
	flags.Lookup("timeout").Hidden = true
	flags.StringVarP(&name, "signal", "s", "", "`signal` to send instead of SIGTERM or that of rootless-run --stop-signal")
	completeSignals(cmd)
	return cmd
}

// end ends a sandbox: by sig or, if that is 0, its stop signal, and after the patience by SIGKILL.
func (p *program) end(ctx context.Context, dir *state.Dir, r state.Record, sig syscall.Signal, patience time.Duration) error {
	fd, err := r.Supervisor.Open()
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended since it was found
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	defer unix.Close(fd)
	supervisor := func(sig syscall.Signal) error {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		return nil
	}
	command := func(sig syscall.Signal) error {
		client := api.NewClient(dir.SocketPath(r))
		defer client.Close()
		ctx, cancel := context.WithTimeout(ctx, commandKillPatience)
		defer cancel()
		var refused *api.Error
		if err := client.Kill(ctx, sig); errors.As(err, &refused) {
			return err
		}
		return nil // a supervisor that does not answer may be ending; the next step deals with one that hangs
	}
	type step struct {
		send func(syscall.Signal) error
		sig  syscall.Signal
		wait time.Duration
	}
	var steps []step
	if sig != unix.SIGKILL {
		first := step{supervisor, unix.SIGTERM, patience} // which the supervisor passes on as the command's stop signal
		if sig != 0 {
			first.send, first.sig = command, sig
		}
		steps = append(steps, first)
	}
	// The command is killed first: the supervisor then records its exit code, and undoes everything in order.
	steps = append(steps, step{command, unix.SIGKILL, commandKillPatience}, step{supervisor, unix.SIGKILL, killPatience})
	for _, s := range steps {
		err := s.send(s.sig)
		var refused *api.Error
		if errors.As(err, &refused) {
			continue // the supervisor says that no command runs: others use its network
		}
		if err != nil {
			return err
		}
		if ended, err := waitEnd(ctx, fd, s.wait); ended || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: the supervisor (process %d) does not end after SIGKILL", r.Name, r.Supervisor.PID)
}

// waitEnd waits until a process has ended, at most for the duration wait.
func waitEnd(ctx context.Context, pidfd int, wait time.Duration) (ended bool, err error) {
	const step = 100 * time.Millisecond
	for begin := time.Now(); ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		left := max(0, min(step, wait-time.Since(begin)))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return false, err
		}
		if n > 0 {
			return true, nil
		}
		if time.Since(begin) >= wait {
			return false, nil
		}
	}
}
