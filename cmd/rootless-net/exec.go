package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rootlessnet"
	"rootlessnet/api"
	"rootlessnet/internal/state"
	"rootlessnet/internal/terminal"
	"rootlessnet/userns"
)

func (p *program) execCommand() *cobra.Command {
	var env, envFiles []string
	var dir, user string
	var background, interactive, tty bool
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME COMMAND [ARG...]",
		Short: "Run a command in a running sandbox",
		Long: `Run a command in all namespaces of a running sandbox, with the caller's environment and directory. Its standard input
is empty unless -i is given, as with docker exec: use -it for a shell.

The command ends with the sandbox. Exit status: that of the command; 126 if it cannot be executed, 127 if it was not
found, 128+n if signal n ended it, 1 if there is no such sandbox.`,
		Args: atLeast(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			report := detachedExec()
			if background && report == nil {
				return p.execInBackground(args[0])
			}
			c := userns.Command{Argv: args[1:], Env: os.Environ(), Dir: dir, Terminal: tty}
			if interactive && report == nil {
				if tty && !term.IsTerminal(int(p.stdin.Fd())) {
					return errors.New("the input device is not a TTY")
				}
				c.Stdin = p.stdin
			}
			for _, path := range envFiles {
				more, err := readEnvFile(path)
				if err != nil {
					return usageError{err}
				}
				c.Env = append(c.Env, withValues(more)...)
			}
			c.Env = append(c.Env, withValues(env)...)
			if user != "" {
				u, err := rootlessnet.ParseUser(user)
				if err != nil {
					return exitError{rootlessnet.ExitCannotExec, err}
				}
				c.User = &userns.Credential{UID: u.UID, GID: u.GID}
			}
			return report.pass(p.exec(cmd.Context(), args[0], c, report.started))
		},
		ValidArgsFunction: p.completeNames,
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set an environment variable: `NAME=value`, or NAME for the caller's (repeatable)")
	cmd.Flags().StringVarP(&dir, "workdir", "w", "", "working `directory`")
	cmd.Flags().StringArrayVar(&envFiles, "env-file", nil, "read environment variables from a `file` of lines as for -e (repeatable)")
	cmd.Flags().StringVarP(&user, "user", "u", "", "`user` inside: name|uid[:group|gid]")
	cmd.Flags().BoolVarP(&background, "detach", "d", false, "return when the command has started; its standard streams are /dev/null")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "give the command the caller's standard input")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal of its own")
	return cmd
}

// withValues completes each variable that has a name only with its value in our environment, and omits it if it is not set.
func withValues(env []string) []string {
	var full []string
	for _, v := range env {
		if !strings.Contains(v, "=") {
			value, ok := os.LookupEnv(v)
			if !ok {
				continue
			}
			v += "=" + value
		}
		full = append(full, v)
	}
	return full
}

// exec runs a command in a sandbox. It holds a lease meanwhile: the lease ends with the sandbox, and then the command is killed.
// started is called when the command runs.
func (p *program) exec(ctx context.Context, ref string, c userns.Command, started func()) error {
	r, client, err := p.find(ref)
	if err != nil {
		return err
	}
	defer client.Close()
	requests, cancelRequests := context.WithTimeout(ctx, requestTimeout)
	defer cancelRequests()
	lease, err := client.Lease(requests, api.LeaseExec)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	defer lease.Close()
	// The lease was taken before, so the sandbox has not ended and the pid is that of its PID 1.
	box, err := client.Inspect(requests)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	if box.InitPID <= 0 || r.Status == state.Lingering {
		return fmt.Errorf("sandbox %s is not running", r.Name)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-lease.Done():
			cancel(errSandboxEnded)
		case <-stop:
		}
	}()
	defer func() { close(stop); <-watching }()

	c.Stdout, c.Stderr = file(p.stdout), file(p.stderr)
	var tty terminal.Terminal
	defer tty.Finish()
	if c.Terminal {
		slave, err := tty.Open(c.Stdin, c.Stdout)
		if err != nil {
			return err
		}
		defer slave.Close() // again, if the command has started
		c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
		reported := started
		started = func() {
			slave.Close()
			tty.Relay()
			reported()
		}
	}
	code, err := p.enter(ctx, box.InitPID, c, started)
	if err != nil && errors.Is(context.Cause(ctx), errSandboxEnded) {
		return exitError{128 + int(syscall.SIGKILL), errSandboxEnded}
	}
	var exec *userns.ExecError
	switch {
	case errors.As(err, &exec):
		return exitError{exec.Code, err}
	case err != nil:
		return err
	case code != 0:
		return exitError{code, nil}
	}
	return nil
}

var errSandboxEnded = errors.New("the sandbox has ended")

// file returns the writer as a file, which the command inherits, or nil if it is none.
func file(w any) *os.File {
	f, _ := w.(*os.File)
	return f
}
