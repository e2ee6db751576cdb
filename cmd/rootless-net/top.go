package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
)

func (p *program) topCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top NAME [ps OPTIONS]",
		Short: "List the processes of a running sandbox, with their ids outside",
		Long: `List the processes of a running sandbox, with their ids outside, in the columns of "ps -ef". With options, such as aux or
-o pid,etime,args, the ps program of the host chooses the columns, one of which must be PID.`,
		Args:              atLeast(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return p.top(cmd.Context(), args[0], args[1:]) },
		ValidArgsFunction: p.completeNames,
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (p *program) top(ctx context.Context, ref string, options []string) error {
	box, err := call(ctx, p, ref, (*api.Client).Inspect)
	if err != nil {
		return err
	}
	w := p.table()
	list := processes(box)
	if options = strings.Fields(strings.Join(options, " ")); len(options) == 0 || slices.Equal(options, []string{"-ef"}) {
		full(w, list)
	} else if err := byPS(ctx, w, list, options); err != nil {
		return err
	}
	return w.Flush()
}

// full prints the columns of ps -ef, as docker top does; it needs no ps program.
func full(w io.Writer, list []process) {
	now := time.Now()
	fmt.Fprintln(w, "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD")
	for _, proc := range list {
		start := startTime(proc.stat, now)
		share := 0
		if life := now.Sub(start); life > 0 {
			share = int(100 * proc.stat.CPU / life)
		}
		layout := "15:04"
		if now.Sub(start) > 24*time.Hour {
			layout = "Jan02"
		}
		seconds := int(proc.stat.CPU.Seconds())
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%02d:%02d:%02d\t%s\n", userName(proc.uid), proc.pid, proc.stat.Parent, share,
			start.Format(layout), ttyName(proc.stat.TTY), seconds/3600, seconds/60%60, seconds%60, proc.cmd)
	}
}

// byPS prints the lines of ps about the processes, as docker top does. ps is asked for them only, and for all that the options select if
// it does not allow that together with the options.
func byPS(ctx context.Context, w io.Writer, list []process, options []string) error {
	var pids []string
	for _, proc := range list {
		pids = append(pids, strconv.Itoa(proc.pid))
	}
	text, err := runPS(ctx, append(slices.Clone(options), "-q", strings.Join(pids, ",")))
	if err != nil {
		text, err = runPS(ctx, options)
	}
	if err != nil {
		return err
	}
	var titles []string
	column := -1
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case titles == nil:
			titles = words
			if column = slices.Index(titles, "PID"); column < 0 {
				return errors.New("couldn't find PID field in ps output")
			}
		case len(words) <= column || !slices.Contains(pids, words[column]):
			continue
		case len(words) > len(titles): // the last column has blanks
			last := len(titles) - 1
			words = append(words[:last:last], strings.Join(words[last:], " "))
		}
		fmt.Fprintln(w, strings.Join(words, "\t"))
	}
	return nil
}

// runPS runs the ps program and returns what it prints.
func runPS(ctx context.Context, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, "ps", args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("ps is not installed, which options of top need; without options it is not used: %w", err)
	case errors.As(err, &exit):
		reason, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
		return "", fmt.Errorf("ps %s: %s", strings.Join(args, " "), cmp.Or(reason, exit.Error()))
	case err != nil:
		return "", fmt.Errorf("ps: %w", err)
	}
	return string(out), nil
}
