package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"rootlessnet"
	"rootlessnet/internal/textlog"
)

// program is rootless-run with the library and the standard streams as parameters, so that tests can replace them.
type program struct {
	run                   func(context.Context, rootlessnet.Config) (int, error)
	stdin, stdout, stderr *os.File
}

// usageError is an error in the command line. Its text is followed by a hint to --help.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// main runs the program and returns its exit code.
func (p program) main(args []string) int {
	child := detachedChild()
	var messages io.Writer = p.stderr
	if child != nil {
		messages = child.messages
	}
	code, err := p.execute(args, child, messages)
	if err != nil {
		fmt.Fprintf(messages, "rootless-run: %v\n", err)
		var wrong usageError
		var config *rootlessnet.UsageError
		if hint := imageHint(err); hint != "" {
			fmt.Fprintln(messages, hint)
		}
		if errors.As(err, &wrong) || errors.As(err, &config) {
			fmt.Fprintln(messages, "See 'rootless-run --help'.")
		}
		if code == 0 {
			code = rootlessnet.ExitFailure
		}
	}
	return code
}

func (p program) execute(args []string, child *detached, messages io.Writer) (code int, err error) {
	var o options
	cmd := newCommand(&o)
	cmd.SetArgs(joinPID(cmd.Flags(), args))
	cmd.SetIn(p.stdin)
	cmd.SetOut(p.stdout)
	cmd.SetErr(messages)
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if shell := completionShell(cmd, argv); shell != "" {
			return writeCompletion(cmd, shell, p.stdout)
		}
		c, err := p.config(&o, cmd.Flags(), argv)
		if err != nil {
			return err
		}
		if o.detach && child == nil {
			if err := c.Validate(); err != nil {
				return err
			}
			code, err = p.detach(args)
			return err
		}
		code, err = p.foreground(c, &o, child, messages)
		return err
	}
	err = cmd.ExecuteContext(context.Background())
	return code, err
}

// foreground runs the sandbox in this process. child is nil if the process is not the background process of --detach.
func (p program) foreground(c rootlessnet.Config, o *options, child *detached, messages io.Writer) (int, error) {
	var err error
	if c.Listeners, err = inheritedListeners(); err != nil {
		return 0, err
	}
	c.Logger = slog.New(textlog.New(messages, "rootless-run", o.logLevel.Least()))
	c.OnPublish = func(m rootlessnet.PortMapping) {
		fmt.Fprintf(messages, "rootless-run: published %s\n", m)
	}
	relay := catchSignals()
	defer relay.stop()
	if o.sigProxy {
		c.Signals = relay.forward
		if child == nil {
			relay.catchStop()
		}
	}
	c.KeepEnded = o.keep(child)
	c.OnStart = func(rootlessnet.Started) {
		if !c.TTY { // otherwise the terminal is in raw mode and sends no signals
			relay.commandStarted()
		}
	}
	if child != nil {
		c.Stdin, c.Stdout, c.Stderr, c.LogOutput = nil, nil, nil, o.logDriver.keep()
		c.OnStart = func(s rootlessnet.Started) {
			relay.commandStarted()
			child.started(s.ID)
		}
	}
	code, err := p.run(context.Background(), c)
	return code, withName(code, err, c.Argv)
}

// config translates the options into a Config.
func (p program) config(o *options, flags *pflag.FlagSet, argv []string) (rootlessnet.Config, error) {
	c := o.config
	c.Argv = argv
	if c.User != "" && !flags.Changed("userns") {
		c.UserNS = "" // chosen by the user
	}
	if len(argv) == 0 {
		shell := os.Getenv("SHELL")
		if o.detach || !term.IsTerminal(int(p.stdin.Fd())) {
			return c, usageError{errors.New(`"rootless-run" requires at least 1 argument.`)}
		}
		if shell == "" {
			shell = "/bin/sh"
		}
		c.Argv = []string{shell}
	}
	c.Stdin, c.Stdout, c.Stderr = p.stdin, p.stdout, p.stderr
	asked := flags.Changed("interactive")
	switch {
	case !o.interactive:
		c.Stdin = nil
	case c.TTY && !o.detach && !term.IsTerminal(int(p.stdin.Fd())):
		if asked {
			return c, errors.New("the input device is not a TTY")
		}
		c.Stdin = nil // as with docker run -t: only -i attaches what is not a terminal
	}
	c.OpenStdin = o.detach && asked && o.interactive
	c.JobControl = !o.detach && !c.TTY
	var err error
	if c.Env, err = o.env.apply(withoutOurVariables(os.Environ())); err != nil {
		return c, err
	}
	if c.Dir, err = workdir(c.Dir); err != nil {
		return c, err
	}
	if c.Labels, err = o.labels.all(); err != nil {
		return c, err
	}
	c.Confine = true
	c.DisableIPv6 = !o.ipv6
	c.Publish = o.publish.Specs
	if c.PublishAll {
		c.Publish = append(c.Publish, o.expose.without(c.Publish)...)
	}
	for _, subnet := range o.subnets.List {
		if subnet.Addr().Is4() {
			c.Subnet = subnet
		} else {
			c.Subnet6 = subnet
		}
	}
	return c, nil
}

// completionShell returns the shell of a request for a completion script, "rootless-run completion SHELL" without flags, and ""
// otherwise. "rootless-run -- completion SHELL" runs a command named completion.
func completionShell(cmd *cobra.Command, argv []string) string {
	if len(argv) != 2 || argv[0] != "completion" || cmd.Flags().NFlag() > 0 || cmd.ArgsLenAtDash() >= 0 {
		return ""
	}
	switch argv[1] {
	case "bash", "zsh", "fish":
		return argv[1]
	}
	return ""
}

func writeCompletion(cmd *cobra.Command, shell string, out io.Writer) error {
	switch shell {
	case "bash":
		return cmd.GenBashCompletionV2(out, true)
	case "zsh":
		return cmd.GenZshCompletion(out)
	default:
		return cmd.GenFishCompletion(out, true)
	}
}
