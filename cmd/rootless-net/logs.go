package main

import (
	"bytes"
	"context"
	"fmt"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/internal/state"
)

// followInterval is how often logs -f looks for new output.
const followInterval = 50 * time.Millisecond

func (p *program) logsCommand() *cobra.Command {
	var o struct {
		follow, timestamps bool
		tail, since, until string
	}
	cmd := &cobra.Command{
		Use:   "logs [flags] NAME",
		Short: "Print the output of a detached sandbox, while it runs or after its end",
		Long: `Print the output of a detached sandbox, while it runs or after its end: what it has written to its standard output and error to
ours, as docker logs does.`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := logWriter{out: p, timestamps: o.timestamps, within: map[state.Stream]bool{}}
			now := time.Now()
			var err error
			if w.since, err = parseTime(o.since, now); err != nil {
				return err
			}
			if w.until, err = parseTime(o.until, now); err != nil {
				return err
			}
			lines := -1
			if o.tail != "all" {
				if lines, err = strconv.Atoi(o.tail); err != nil {
					return usageError{fmt.Errorf("invalid value for \"--tail\": %q", o.tail)}
				}
			}
			dir, r, err := p.findAny(args[0])
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return w.print(ctx, dir, r, lines, o.follow)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeAll(cmd, args, word)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.follow, "follow", "f", false, "go on with what is written, until the sandbox ends")
	flags.StringVarP(&o.tail, "tail", "n", "all", "only the last `n` lines, or all")
	flags.StringVar(&o.since, "since", "", "only what was written since a `time` (2026-01-02T15:04:05Z) or for that long (10m)")
	flags.StringVar(&o.until, "until", "", "only what was written before a `time` or that long ago")
	flags.BoolVarP(&o.timestamps, "timestamps", "t", false, "begin each line with the time at which it was written")
	return cmd
}

// logWriter prints the chunks of a log, each stream to the same one of this program.
type logWriter struct {
	out          *program
	since, until time.Time // zero: no bound
	timestamps   bool
	within       map[state.Stream]bool // the last chunk of the stream has ended within a line
}

// line is a line of a stream, or its beginning or end, with its time.
type line struct {
	stream state.Stream
	text   []byte
	at     time.Time
}

// print prints the log of a sandbox: its last lines, all if lines is negative, and with follow what is written from then on.
func (w *logWriter) print(ctx context.Context, dir *state.Dir, r state.Record, lines int, follow bool) error {
	log, err := dir.OpenLog(r)
	if err != nil {
		return err
	}
	defer log.Close()
	chunks, err := log.Read()
	if err != nil {
		return err
	}
	kept := w.split(chunks)
	if lines >= 0 {
		kept = lastLines(kept, lines)
	}
	if err := w.write(kept); err != nil || !follow {
		return err
	}
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !w.until.IsZero() && time.Now().After(w.until) {
			return nil
		}
		ended := dir.Ended(r) // before the last look, so that nothing is missed
		chunks, err := log.Read()
		if err != nil {
			return err
		}
		if err := w.write(w.split(chunks)); err != nil || ended {
			return err
		}
	}
}

// split takes the chunks within the bounds of time apart into lines. A chunk whose time is not known is within them.
func (w *logWriter) split(chunks []state.Chunk) (lines []line) {
	open := map[state.Stream]int{} // the index of a line of the stream that has no end yet, plus 1
	for _, c := range chunks {
		if !c.Time.IsZero() && (c.Time.Before(w.since) || !w.until.IsZero() && c.Time.After(w.until)) {
			continue
		}
		for text := range bytes.Lines(c.Text) {
			if i := open[c.Stream]; i > 0 {
				lines[i-1].text = append(bytes.Clone(lines[i-1].text), text...)
			} else {
				lines = append(lines, line{c.Stream, text, c.Time})
				open[c.Stream] = len(lines)
			}
			if bytes.HasSuffix(text, []byte("\n")) {
				open[c.Stream] = 0
			}
		}
	}
	return lines
}

func lastLines(lines []line, n int) []line { return lines[max(0, len(lines)-n):] }

// write prints lines, those that follow each other on one stream at once.
func (w *logWriter) write(lines []line) error {
	for len(lines) > 0 {
		stream := lines[0].stream
		var b bytes.Buffer
		for len(lines) > 0 && lines[0].stream == stream {
			w.format(&b, lines[0])
			lines = lines[1:]
		}
		to := w.out.stdout
		if stream == state.Stderr {
			to = w.out.stderr
		}
		if _, err := to.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func (w *logWriter) format(b *bytes.Buffer, l line) {
	if w.timestamps && !w.within[l.stream] {
		if l.at.IsZero() {
			b.WriteString("- ")
		} else {
			b.WriteString(l.at.UTC().Format(logTime) + " ")
		}
	}
	b.Write(l.text)
	w.within[l.stream] = !bytes.HasSuffix(l.text, []byte("\n"))
}

// logTime is docker's form of times in logs and events.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"
