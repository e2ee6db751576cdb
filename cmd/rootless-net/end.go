package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rootlessnet"
	"rootlessnet/api"
	"rootlessnet/internal/state"
)

func (p *program) killCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "kill [flags] NAME...",
		Short: "Send a signal to the commands of running sandboxes",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			sig, err := rootlessnet.ParseSignal(name)
			if err != nil {
				return usageError{err}
			}
			return p.each(refs, func(ref string) error { return p.kill(cmd.Context(), ref, sig) })
		},
		ValidArgsFunction: p.completeAll,
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "`signal` to send, by name or number")
	completeSignals(cmd)
	return cmd
}

// completeSignals completes the flag --signal with the names of those that people send.
func completeSignals(cmd *cobra.Command) {
	words := []string{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP"}
	cmd.RegisterFlagCompletionFunc("signal", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// kill sends a signal to a sandbox's command, or to the supervisor of a sandbox that has no command.
func (p *program) kill(ctx context.Context, ref string, sig syscall.Signal) error {
	r, client, err := p.find(ref)
	if err != nil {
		return fmt.Errorf("cannot kill sandbox: %s: %w", ref, err)
	}
	defer client.Close()
	if r.Network == networkAttach {
		return signalSupervisor(r, sig)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := client.Kill(ctx, sig); err != nil {
		return fmt.Errorf("cannot kill sandbox: %s: %w", ref, err)
	}
	return nil
}

// networkAttach is the network mode of a sandbox without a command of its own.
const networkAttach = "attach"

func signalSupervisor(r state.Record, sig syscall.Signal) error {
	fd, err := r.Supervisor.Open()
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sandbox %s is not running", r.Name)
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	return nil
}

func (p *program) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait NAME...",
		Short: "Wait until the commands of sandboxes have ended, and print their exit codes",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			var errs []error
			for _, ref := range refs {
				dir, r, err := p.findAny(ref)
				code := 0
				if err == nil {
					code, err = dir.Wait(cmd.Context(), r)
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(p.stdout, code)
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: p.completeAll,
	}
}

func (p *program) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rename NAME NEW_NAME",
		Short: "Give a sandbox another name",
		Args:  exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := rootlessnet.CheckName(args[1]); err != nil {
				return err
			}
			dir, r, err := p.findAny(args[0])
			if err != nil {
				return err
			}
			if r.Name == args[1] {
				return errors.New("Renaming a sandbox with the same name as its current name")
			}
			if r.Status == state.Exited {
				return dir.Rename(r, args[1])
			}
			client := api.NewClient(dir.SocketPath(r))
			defer client.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
			defer cancel()
			return client.Rename(ctx, args[1])
		},
		ValidArgsFunction: p.completeAll,
	}
}

func (p *program) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm [flags] NAME...",
		Short: "Remove what is kept of sandboxes that have ended: exit code and output",
		Args:  atLeast(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return p.each(refs, func(ref string) error {
				err := p.remove(cmd.Context(), ref, force)
				if force && errors.Is(err, state.ErrNotFound) {
					fmt.Fprintf(p.stderr, "rootless-net: %v\n", err) // as docker rm -f, which succeeds
					return nil
				}
				return err
			})
		},
		ValidArgsFunction: p.completeAll,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill what runs")
	return cmd
}

func (p *program) remove(ctx context.Context, ref string, force bool) error {
	dir, r, err := p.findAny(ref)
	if err != nil {
		return err
	}
	if r.Status != state.Exited && force {
		if err := p.end(ctx, dir, r, unix.SIGKILL, 0); err != nil {
			return err
		}
		if err := dir.Remove(r); !errors.Is(err, state.ErrNotFound) { // it may be one that is not kept
			return err
		}
		return nil
	}
	return dir.Remove(r)
}

func (p *program) pruneCommand() *cobra.Command {
	var force bool
	var list []string
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove what is kept of all sandboxes that have ended",
		Args:  exactly(0),
		RunE: func(*cobra.Command, []string) error {
			filter, err := parseFilters(list, pruneFilters)
			if err != nil {
				return err
			}
			until, err := lastTime(filter["until"])
			if err != nil {
				return err
			}
			if !force {
				fmt.Fprint(p.stdout, "WARNING! This will remove all stopped sandboxes.\nAre you sure you want to continue? [y/N] ")
				answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
				if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
					return exitError{exitFailure, errors.New("prune has been cancelled")}
				}
			}
			return p.prune(filter, until)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	// -f is --force here, as docker has it.
	cmd.Flags().StringArrayVar(&list, "filter", nil, "remove only what matches `KEY=VALUE` (repeatable); keys: "+strings.Join(pruneFilters, ", "))
	return cmd
}

var pruneFilters = []string{"until", "label"}

// lastTime reads the last of several times.
func lastTime(values []string) (t time.Time, err error) {
	for _, v := range values {
		if t, err = parseTime(v, time.Now()); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (p *program) prune(filter filters, until time.Time) error {
	dir, err := state.Open(p.stateDir)
	if err != nil {
		return err
	}
	records, err := dir.ListAll()
	if err != nil {
		return err
	}
	var freed uint64
	var errs []error
	first := true
	for _, r := range records {
		if r.Status != state.Exited || !filter.labels(r.Labels) || !until.IsZero() && !r.Created.Before(until) {
			continue
		}
		size := dir.Size(r)
		if err := dir.Remove(r); err != nil {
			errs = append(errs, err)
			continue
		}
		if first {
			fmt.Fprintln(p.stdout, "Deleted Sandboxes:")
			first = false
		}
		fmt.Fprintln(p.stdout, r.ID)
		freed += uint64(size)
	}
	if !first {
		fmt.Fprintln(p.stdout)
	}
	fmt.Fprintf(p.stdout, "Total reclaimed space: %s\n", humanSize(freed))
	return errors.Join(errs...)
}
