package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"rootlessnet/internal/signals"
	"rootlessnet/userns"
)

// enter runs a command in all namespaces of the sandbox whose PID 1 is the process target, and forwards signals to it.
func enter(ctx context.Context, target int, c userns.Command, started func()) (int, error) {
	caught := make(chan os.Signal, signals.Backlog)
	signals.Catch(caught)
	defer signal.Stop(caught)
	signals.CatchStop(caught)

	s, err := userns.Enter(ctx, target)
	if err != nil {
		return exitFailure, err
	}
	defer s.Close()
	pid, err := s.Run(c)
	if err != nil {
		return exitFailure, err
	}
	started()
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := s.Wait()
		done <- result{code, err}
	}()
	for {
		select {
		case r := <-done:
			return r.code, r.err
		case sig := <-s.Stops():
			if c.Terminal { // in a terminal of its own nothing else could continue it
				s.Signal(syscall.SIGCONT)
			} else {
				signals.StopJob(pid, sig)
			}
		case sig := <-caught:
			if sig == syscall.SIGTSTP && signals.SharesGroup(pid) {
				signals.StopSelf()
				continue
			}
			if !c.Terminal && signals.FromTerminal(sig) {
				continue // the terminal has sent it to the command, too
			}
			s.Signal(sig.(syscall.Signal))
		case <-ctx.Done():
			s.Close() // kills the command, and so ends Wait
			<-done
			return exitFailure, context.Cause(ctx)
		}
	}
}
