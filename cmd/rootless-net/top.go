package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
)

func (p *program) topCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "top NAME",
		Short:             "List the processes of a running sandbox, with their ids outside",
		Args:              exactly(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return p.top(cmd.Context(), args[0]) },
		ValidArgsFunction: p.completeNames,
	}
}

// top prints the columns of ps -ef, as docker top does.
func (p *program) top(ctx context.Context, ref string) error {
	box, err := call(ctx, p, ref, (*api.Client).Inspect)
	if err != nil {
		return err
	}
	now := time.Now()
	w := p.table()
	fmt.Fprintln(w, "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD")
	for _, proc := range processes(box) {
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
	return w.Flush()
}
