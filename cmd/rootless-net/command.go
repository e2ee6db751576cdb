package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
	"rootlessnet/internal/state"
	"rootlessnet/userns"
)

// Exit codes. They are the same as docker's.
const (
	exitFailure = 1
	exitUsage   = 125
)

// requestTimeout bounds a request, so that a sandbox that does not answer cannot prevent the others from being listed.
const requestTimeout = 5 * time.Second

// program is rootless-net. Its fields are what tests replace.
type program struct {
	stdin          *os.File
	stdout, stderr io.Writer
	// enter runs a command in the sandbox whose PID 1 is the process target.
	// started is called when it runs.
	enter func(ctx context.Context, target int, c userns.Command, started func()) (exitCode int, err error)
	// stateDir is the directory of sandboxes; empty means the default (state.Open).
	stateDir string
	output   string // value of -o
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitError ends the program with the exit code of a command that it has run.
type exitError struct {
	code int
	err  error // printed; nil if the command itself has exited with the code
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}
func (e exitError) Unwrap() error { return e.err }

// main runs the program and returns its exit code.
func (p *program) main(ctx context.Context, args []string) int {
	root := p.newCommand()
	root.SetArgs(args)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintf(p.stderr, "rootless-net: %v\n", exit.err)
		}
		return exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(p.stderr, "rootless-net: %v\nSee '%s --help'.\n", err, cmd.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(p.stderr, "rootless-net: %v\n", err)
		return exitFailure
	}
}

func (p *program) newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "rootless-net",
		Short:         "Manage the networks of running sandboxes",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%q is not a rootless-net command", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetVersionTemplate("rootless-net version {{.Version}}\n")
	root.Flags().BoolP("version", "v", false, "show the version")
	root.AddCommand(p.psCommand(), p.inspectCommand(), p.portCommand(), p.execCommand(), p.logsCommand(), p.stopCommand(), p.killCommand(), p.waitCommand(),
		p.rmCommand(), p.pruneCommand(), p.renameCommand(), p.topCommand(), p.statsCommand(), p.eventsCommand(), p.attachCommand(), p.dropInCommand(), newDoctorCommand())
	return root
}

// exactly checks the number of arguments. The text of its error is docker's.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%q requires exactly %d %s.", cmd.CommandPath(), n, plural(n, "argument"))}
		}
		return nil
	}
}

// atLeast checks the minimum number of arguments, as exactly does.
func atLeast(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usageError{fmt.Errorf("%q requires at least %d %s.", cmd.CommandPath(), n, plural(n, "argument"))}
		}
		return nil
	}
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// addOutput adds the flag -o to a command.
func (p *program) addOutput(cmd *cobra.Command, standard string) {
	output := cmd.Flags().StringP("output", "o", standard, "output format: table or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		p.output = *output
		if p.output != "table" && p.output != "json" {
			return usageError{fmt.Errorf("unknown output format %q: table or json", p.output)}
		}
		return nil
	}
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (p *program) writeJSON(v any) error {
	e := json.NewEncoder(p.stdout)
	e.SetIndent("", "    ") // as docker does
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// findAny returns a sandbox that runs or has ended, and the directory that it is in.
func (p *program) findAny(ref string) (*state.Dir, state.Record, error) {
	dir, err := state.Open(p.stateDir)
	if err != nil {
		return nil, state.Record{}, err
	}
	r, err := dir.LookupAny(ref)
	return dir, r, err
}

// find returns a live sandbox and a client for it, which the caller must close.
func (p *program) find(ref string) (state.Record, *api.Client, error) {
	dir, r, err := p.findAny(ref)
	if err != nil {
		return state.Record{}, nil, err
	}
	if r.Status == state.Exited {
		return state.Record{}, nil, fmt.Errorf("sandbox %s is not running", r.Name)
	}
	return r, api.NewClient(dir.SocketPath(r)), nil
}

// each does something for every sandbox that the arguments name, prints those for which it succeeded, as docker does, and returns
// all errors.
func (p *program) each(refs []string, do func(ref string) error) error {
	var errs []error
	for _, ref := range refs {
		if err := do(ref); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(p.stdout, ref)
	}
	return errors.Join(errs...)
}

// call finds a sandbox and sends it one request, which is a method of the client.
func call[T any](ctx context.Context, p *program, ref string, request func(*api.Client, context.Context) (T, error)) (T, error) {
	_, client, err := p.find(ref)
	if err != nil {
		var none T
		return none, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return request(client, ctx)
}

// completeNames completes the first argument of a command with the names of live sandboxes.
func (p *program) completeNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return p.names(func(r state.Record) bool { return r.Status != state.Exited }), cobra.ShellCompDirectiveNoFileComp
}

// completeAll completes every argument with the names of all sandboxes.
func (p *program) completeAll(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.names(func(state.Record) bool { return true }), cobra.ShellCompDirectiveNoFileComp
}

func (p *program) names(wanted func(state.Record) bool) (names []string) {
	if dir, err := state.Open(p.stateDir); err == nil {
		records, _ := dir.ListAll()
		for _, r := range records {
			if wanted(r) {
				names = append(names, r.Name)
			}
		}
	}
	return names
}
