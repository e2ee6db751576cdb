package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

func (p *program) psCommand() *cobra.Command {
	var quiet, noTrunc bool
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"ls", "list"},
		Short:   "List running sandboxes",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			boxes, err := p.list(cmd.Context())
			switch {
			case err != nil:
				return err
			case p.output == "json":
				return p.writeJSON(boxes)
			case quiet:
				for _, b := range boxes {
					fmt.Fprintln(p.stdout, shownID(b.ID, noTrunc))
				}
				return nil
			}
			return p.writeTable(boxes, noTrunc)
		},
	}
	p.addOutput(cmd, "table")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten anything")
	return cmd
}

// list describes all sandboxes. It sends the requests in parallel, and describes a sandbox that does not answer by its record.
func (p *program) list(ctx context.Context) ([]api.Sandbox, error) {
	dir, err := state.Open(p.stateDir)
	if err != nil {
		return nil, err
	}
	records, err := dir.List()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	boxes := make([]api.Sandbox, len(records))
	var requests sync.WaitGroup
	for i, r := range records {
		requests.Go(func() {
			client := api.NewClient(dir.SocketPath(r))
			defer client.Close()
			box, err := client.Inspect(ctx)
			if err != nil {
				box = api.SandboxFromRecord(r)
			}
			boxes[i] = box
		})
	}
	requests.Wait()
	return boxes, nil
}

// table returns a writer that aligns columns as docker does. The caller must flush it.
func (p *program) table() *tabwriter.Writer {
	return tabwriter.NewWriter(p.stdout, 10, 1, 3, ' ', 0)
}

func (p *program) writeTable(boxes []api.Sandbox, noTrunc bool) error {
	w := p.table()
	fmt.Fprintln(w, "SANDBOX ID\tCOMMAND\tCREATED\tSTATUS\tNETWORK\tPORTS\tNAMES")
	for _, b := range boxes {
		fmt.Fprintf(w, "%s\t%s\t%s ago\t%s\t%s\t%s\t%s\n", shownID(b.ID, noTrunc), shownCommand(b.Command, noTrunc),
			humanDuration(time.Since(b.Created)), b.Status, shownNetwork(b.Network), shownPorts(b), b.Name)
	}
	return w.Flush()
}

func shownID(id string, whole bool) string {
	if whole {
		return id
	}
	return state.ShortID(id)
}

// shownWidth is the number of characters of a command that docker ps shows.
const shownWidth = 20

func shownCommand(argv []string, whole bool) string {
	text := []rune(strings.Join(argv, " "))
	if !whole && len(text) > shownWidth {
		text = append(text[:shownWidth-1], '…')
	}
	return strconv.Quote(string(text))
}

func shownNetwork(network string) string {
	if id, ok := strings.CutPrefix(network, "container:"); ok {
		return "container:" + state.ShortID(id)
	}
	return network
}

// shownPorts lists published ports as docker ps does, with consecutive ports joined:
// "0.0.0.0:8000-8002->80-82/tcp, [::]:8000-8002->80-82/tcp".
func shownPorts(b api.Sandbox) string {
	ports := slices.Clone(b.Ports)
	slices.SortFunc(ports, func(x, y api.Port) int {
		if c := strings.Compare(x.Proto, y.Proto); c != 0 {
			return c
		}
		if c := x.HostIP.Compare(y.HostIP); c != 0 {
			return c
		}
		if c := int(x.GuestPort) - int(y.GuestPort); c != 0 {
			return c
		}
		return int(x.HostPort) - int(y.HostPort)
	})
	var words []string
	for i := 0; i < len(ports); {
		first, last := ports[i], ports[i]
		for i++; i < len(ports) && follows(last, ports[i]); i++ {
			last = ports[i]
		}
		if first == last {
			words = append(words, first.String())
			continue
		}
		words = append(words, fmt.Sprintf("%s-%d->%d-%d/%s", first.Host(), last.HostPort, first.GuestPort, last.GuestPort, first.Proto))
	}
	return strings.Join(words, ", ")
}

// follows reports whether b is the port after a, on the host and inside.
func follows(a, b api.Port) bool {
	return a.Proto == b.Proto && a.HostIP == b.HostIP && int(a.HostPort)+1 == int(b.HostPort) && int(a.GuestPort)+1 == int(b.GuestPort)
}

// humanDuration formats a duration approximately, as docker does.
func humanDuration(d time.Duration) string {
	count := func(n int, unit string) string { return fmt.Sprintf("%d %s", n, plural(n, unit)) }
	switch s := int(d.Seconds()); {
	case s < 1:
		return "Less than a second"
	case s < 60:
		return count(s, "second")
	case s < 2*60:
		return "About a minute"
	case s < 60*60:
		return count(s/60, "minute")
	case s < 2*60*60:
		return "About an hour"
	case s < 48*60*60:
		return count(s/(60*60), "hour")
	default:
		return count(s/(24*60*60), "day")
	}
}
