package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

const (
	// statsInterval is the time between two tables, as docker has it.
	statsInterval = time.Second
	// statsSample is the time over which a single table measures the use of the processor.
	statsSample = 500 * time.Millisecond
)

func (p *program) statsCommand() *cobra.Command {
	var o struct {
		noStream, all, noTrunc bool
		format                 string
	}
	cmd := &cobra.Command{
		Use:   "stats [flags] [NAME...]",
		Short: "Show what sandboxes use, or the counters of one",
		Long: `Show what all running sandboxes use, or those that are named: processor, memory, network, block devices and threads; the table is
repeated every second unless --no-stream is given.

With one NAME and no flags of the table, show the counters of that sandbox once: traffic, flows, and what was refused or dropped
for which reason.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			flags := cmd.Flags()
			single := len(refs) == 1 && !flags.Changed("no-stream") && !o.all && o.format == ""
			if single || p.output == "json" && len(refs) == 1 {
				return p.showCounters(cmd.Context(), refs[0])
			}
			f, err := parseFormat(o.format)
			if err != nil {
				return err
			}
			if p.output == "json" {
				if f, err = parseFormat("json"); err != nil {
					return err
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return p.stats(ctx, f, refs, o.all, !o.noStream && p.output != "json", o.noTrunc)
		},
		ValidArgsFunction: p.completeAll,
	}
	p.addOutput(cmd, "table")
	flags := cmd.Flags()
	flags.BoolVar(&o.noStream, "no-stream", false, "print one table and end")
	flags.BoolVarP(&o.all, "all", "a", false, "list sandboxes that have ended as well")
	flags.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten anything")
	addFormat(cmd, &o.format)
	return cmd
}

func (p *program) showCounters(ctx context.Context, ref string) error {
	stats, err := call(ctx, p, ref, (*api.Client).Stats)
	if err != nil {
		return err
	}
	if p.output == "json" {
		return p.writeJSON(stats)
	}
	w := p.table()
	writeCounters(w, stats)
	return w.Flush()
}

// statsRow has the fields of docker stats --format.
type statsRow struct {
	BlockIO   string
	CPUPerc   string
	Container string
	ID        string
	MemPerc   string
	MemUsage  string
	Name      string
	NetIO     string
	PIDs      string
}

var statsHeader = statsRow{BlockIO: "BLOCK I/O", CPUPerc: "CPU %", Container: "SANDBOX", ID: "SANDBOX ID", MemPerc: "MEM %",
	MemUsage: "MEM USAGE / LIMIT", Name: "NAME", NetIO: "NET I/O", PIDs: "PIDS"}

// statsTable is what docker stats prints without a format.
const statsTable = "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"

// stats prints the table of sandboxes until ctx ends, or once.
func (p *program) stats(ctx context.Context, f format, refs []string, all, stream, noTrunc bool) error {
	if f.template == nil {
		var err error
		if f, err = parseFormat(statsTable); err != nil {
			return err
		}
	}
	before := map[string]sample{} // by id
	screen := stream && f.table && isTerminal(p.stdout)
	for pause := statsSample; ; pause = statsInterval {
		if len(before) == 0 { // the first look
			boxes, err := p.statsBoxes(ctx, refs, all)
			if err != nil {
				return err
			}
			takeSamples(boxes, before)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		boxes, err := p.statsBoxes(ctx, refs, all)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		now := map[string]sample{}
		takeSamples(boxes, now)
		rows := p.statsRows(ctx, boxes, before, now, noTrunc)
		before = now
		if screen {
			fmt.Fprint(p.stdout, "\x1b[2J\x1b[H") // clear, and to the top left
		}
		if err := printRows(p, f, statsHeader, rows); err != nil || !stream {
			return err
		}
	}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// statsBoxes are the sandboxes to show. It is an error if one of those that are named does not exist.
func (p *program) statsBoxes(ctx context.Context, refs []string, all bool) ([]api.Sandbox, error) {
	boxes, err := p.list(ctx)
	if err != nil {
		return nil, err
	}
	if len(refs) == 0 {
		return slices.DeleteFunc(boxes, func(b api.Sandbox) bool { return b.Status == api.StatusExited && !all }), nil
	}
	var wanted []api.Sandbox
	for _, ref := range refs {
		_, r, err := p.findAny(ref)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(boxes, func(b api.Sandbox) bool { return b.ID == r.ID }); i >= 0 {
			wanted = append(wanted, boxes[i])
		}
	}
	return wanted, nil
}

// sample is the use of a sandbox at one time.
type sample struct {
	at time.Time
	usage
}

func takeSamples(boxes []api.Sandbox, into map[string]sample) {
	for _, b := range boxes {
		if b.Status != api.StatusExited {
			into[b.ID] = sample{time.Now(), measure(processes(b))}
		}
	}
}

// statsRows asks the sandboxes for their traffic, in parallel.
func (p *program) statsRows(ctx context.Context, boxes []api.Sandbox, before, now map[string]sample, noTrunc bool) []statsRow {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	memory := fields("/proc/meminfo")["MemTotal"] << 10
	rows := make([]statsRow, len(boxes))
	var requests sync.WaitGroup
	for i, b := range boxes {
		row := statsRow{ID: shownID(b.ID, noTrunc), Container: shownID(b.ID, noTrunc), Name: b.Name, CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--",
			NetIO: "--", BlockIO: "--", PIDs: "--"}
		if s, ok := now[b.ID]; ok {
			old, known := before[b.ID]
			share := 0.0
			if passed := s.at.Sub(old.at); known && passed > 0 {
				share = 100 * max(0, (s.cpu-old.cpu).Seconds()) / passed.Seconds()
			}
			row.CPUPerc = strconv.FormatFloat(share, 'f', 2, 64) + "%"
			row.MemUsage = binarySize(s.memory) + " / " + binarySize(memory)
			row.MemPerc = strconv.FormatFloat(100*float64(s.memory)/float64(max(memory, 1)), 'f', 2, 64) + "%"
			row.BlockIO = humanSize(s.read) + " / " + humanSize(s.wrote)
			row.PIDs = strconv.Itoa(s.threads)
		}
		rows[i] = row
		if b.Status == api.StatusExited {
			continue
		}
		requests.Go(func() {
			client := api.NewClient(p.socketOf(b))
			defer client.Close()
			if stats, err := client.Stats(ctx); err == nil {
				rx, tx := stats.NetIO()
				rows[i].NetIO = humanSize(rx) + " / " + humanSize(tx)
			}
		})
	}
	requests.Wait()
	return rows
}

// socketOf is the path of the control socket of a sandbox.
func (p *program) socketOf(b api.Sandbox) string {
	dir, err := state.Open(p.stateDir)
	if err != nil {
		return ""
	}
	return dir.SocketPath(state.Record{ID: b.ID})
}

// binarySize formats a number of bytes with four significant digits and a binary unit, as docker stats does for memory.
func binarySize(n uint64) string {
	size, unit := float64(n), 0
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for size >= 1024 && unit < len(units)-1 {
		size, unit = size/1024, unit+1
	}
	return strconv.FormatFloat(size, 'g', 4, 64) + units[unit]
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
