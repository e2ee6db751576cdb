package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"rootlessnet/api"
)

func (p *program) statsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats NAME",
		Short: "Show the counters of a sandbox: traffic, flows, and what was dropped for which reason",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			stats, err := call(cmd.Context(), p, args[0], (*api.Client).Stats)
			if err != nil {
				return err
			}
			if p.output == "json" {
				return p.writeJSON(stats)
			}
			w := p.table()
			fmt.Fprintln(w, "COUNTER\tVALUE")
			rx, tx := stats.NetIO()
			fmt.Fprintf(w, "net i/o\t%s / %s\n", humanSize(rx), humanSize(tx))
			all := counters(stats)
			for _, name := range slices.Sorted(maps.Keys(all)) {
				fmt.Fprintf(w, "%s\t%d\n", name, all[name])
			}
			return w.Flush()
		},
		ValidArgsFunction: p.completeNames,
	}
	p.addOutput(cmd, "table")
	return cmd
}

// humanSize formats a number of bytes with four significant digits and a decimal unit, as docker stats does.
func humanSize(n uint64) string {
	size, unit := float64(n), 0
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	for size >= 1000 && unit < len(units)-1 {
		size, unit = size/1000, unit+1
	}
	return strconv.FormatFloat(size, 'g', 4, 64) + units[unit]
}
