package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/internal/state"
)

var eventFilters = []string{"container", "event", "label", "type"}

func (p *program) eventsCommand() *cobra.Command {
	var since, until, text string
	var list []string
	cmd := &cobra.Command{
		Use:   "events [flags]",
		Short: "Print what happens to sandboxes, as it happens",
		Long: `Print what happens to sandboxes of this user, as it happens: create, start, die, publish and unpublish (of a port while the
sandbox runs), rename, destroy.

Nothing records events: with --since, those that the records of running and ended sandboxes show (create, start, die) are
printed first.`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(text)
			if err != nil {
				return err
			}
			filter, err := parseFilters(list, eventFilters)
			if err != nil {
				return err
			}
			now := time.Now()
			from, err := parseTime(since, now)
			if err != nil {
				return err
			}
			to, err := parseTime(until, now)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if !to.IsZero() {
				var cancel context.CancelFunc
				ctx, cancel = context.WithDeadline(ctx, to)
				defer cancel()
			}
			return p.events(ctx, f, filter, from, to)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&since, "since", "", "print what has happened since a `time` first")
	cmd.Flags().StringVar(&until, "until", "", "end at a `time`")
	addFormat(cmd, &text)
	addFilter(cmd, &list, eventFilters...)
	return cmd
}

// event has the fields of docker events.
type event struct {
	Status   string `json:"status"`
	ID       string `json:"id"`
	Type     string
	Action   string
	Actor    actor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

type actor struct {
	ID         string
	Attributes map[string]string
}

func newEvent(e state.Event) event {
	attributes := maps.Clone(e.Record.Labels)
	if attributes == nil {
		attributes = map[string]string{}
	}
	attributes["name"] = e.Record.Name
	switch e.Action {
	case state.ActionDie:
		attributes["exitCode"] = strconv.Itoa(e.ExitCode)
	case state.ActionRename:
		attributes["oldName"] = "/" + e.OldName
	case state.ActionPublish, state.ActionUnpublish:
		attributes["port"] = e.Port
	}
	return event{Status: string(e.Action), ID: e.Record.ID, Type: "container", Action: string(e.Action), Scope: "local",
		Actor: actor{e.Record.ID, attributes}, Time: e.Time.Unix(), TimeNano: e.Time.UnixNano()}
}

// String is the line that docker events prints.
func (e event) String() string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
		words = append(words, key+"="+e.Actor.Attributes[key])
	}
	return fmt.Sprintf("%s %s %s %s (%s)", time.Unix(0, e.TimeNano).Format(logTime), e.Type, e.Action, e.Actor.ID, strings.Join(words, ", "))
}

// events prints events until ctx ends. to, if not zero, is the time of that end.
func (p *program) events(ctx context.Context, f format, filter filters, from, to time.Time) error {
	dir, err := state.Open(p.stateDir)
	if err != nil {
		return err
	}
	w, records, err := dir.Watch()
	if err != nil {
		return err
	}
	defer w.Close()
	show := func(e state.Event) error {
		r := e.Record
		if !filter.any("container", func(v string) bool { return r.Name == v || v != "" && strings.HasPrefix(r.ID, v) }) ||
			!filter.any("event", func(v string) bool { return string(e.Action) == v }) ||
			!filter.any("type", func(v string) bool { return v == "container" }) || !filter.labels(r.Labels) {
			return nil
		}
		if f.template != nil {
			return printRow(p.stdout, f.template, newEvent(e))
		}
		_, err := fmt.Fprintln(p.stdout, newEvent(e))
		return err
	}
	if !from.IsZero() {
		for _, e := range past(records) {
			if e.Time.Before(from) || !to.IsZero() && e.Time.After(to) {
				continue
			}
			if err := show(e); err != nil {
				return err
			}
		}
	}
	for {
		e, err := w.Next(ctx)
		if err != nil {
			if errors.Is(err, ctx.Err()) {
				return nil
			}
			return err
		}
		if err := show(e); err != nil {
			return err
		}
	}
}

// past are the events that records show, in order.
func past(records []state.Record) (list []state.Event) {
	for _, r := range records {
		list = append(list, state.Event{Action: state.ActionCreate, Time: r.Created, Record: r})
		if !r.Started.IsZero() {
			list = append(list, state.Event{Action: state.ActionStart, Time: r.Started, Record: r})
		}
		if !r.Finished.IsZero() && r.ExitCode != nil {
			list = append(list, state.Event{Action: state.ActionDie, Time: r.Finished, Record: r, ExitCode: *r.ExitCode})
		}
	}
	slices.SortStableFunc(list, func(a, b state.Event) int { return a.Time.Compare(b.Time) })
	return list
}
