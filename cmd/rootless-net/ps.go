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
	var o struct {
		quiet, noTrunc, all, latest bool
		last                        int
		format                      string
		filters                     []string
	}
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"ls", "list"},
		Short:   "List running sandboxes, with -a those that have ended as well",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(o.format)
			if err != nil {
				return err
			}
			filter, err := parseFilters(o.filters, psFilters)
			if err != nil {
				return err
			}
			boxes, err := p.list(cmd.Context())
			if err != nil {
				return err
			}
			if boxes, err = filter.ps(boxes); err != nil {
				return err
			}
			if o.latest {
				o.last = 1
			}
			// As docker does, the filters that ask for ended sandboxes imply -a.
			all := o.all || o.last > 0 || filter["status"] != nil || filter["exited"] != nil
			if !all {
				boxes = slices.DeleteFunc(boxes, func(b api.Sandbox) bool { return b.Status == api.StatusExited })
			}
			if o.last > 0 {
				boxes = boxes[:min(o.last, len(boxes))]
			}
			switch {
			case p.output == "json":
				return p.writeJSON(boxes)
			case o.quiet:
				for _, b := range boxes {
					fmt.Fprintln(p.stdout, shownID(b.ID, o.noTrunc))
				}
				return nil
			case f.template == nil:
				return p.writeTable(boxes, o.noTrunc)
			}
			rows := make([]psRow, len(boxes))
			for i, b := range boxes {
				rows[i] = newPSRow(b, o.noTrunc)
			}
			return printRows(p, f, psHeader, rows)
		},
	}
	p.addOutput(cmd, "table")
	flags := cmd.Flags()
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	flags.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten anything")
	flags.BoolVarP(&o.all, "all", "a", false, "list sandboxes that have ended as well")
	flags.BoolVarP(&o.latest, "latest", "l", false, "list the sandbox that was started last, running or not")
	flags.IntVarP(&o.last, "last", "n", -1, "list the last `n` sandboxes, running or not")
	addFormat(cmd, &o.format)
	addFilter(cmd, &o.filters, psFilters...)
	return cmd
}

// psRow has the fields of docker ps --format. What a sandbox does not have, such as an image, is empty.
type psRow struct {
	Command      string
	CreatedAt    string
	ID           string
	Image        string
	Labels       string
	LocalVolumes string
	Mounts       string
	Names        string
	Networks     string
	Ports        string
	RunningFor   string
	Size         string
	State        string
	Status       string

	labels map[string]string
}

// Label is the value of one label.
func (r psRow) Label(name string) string { return r.labels[name] }

var psHeader = psRow{Command: "COMMAND", CreatedAt: "CREATED AT", ID: "SANDBOX ID", Image: "IMAGE", Labels: "LABELS", LocalVolumes: "LOCAL VOLUMES",
	Mounts: "MOUNTS", Names: "NAMES", Networks: "NETWORKS", Ports: "PORTS", RunningFor: "CREATED", Size: "SIZE", State: "STATE", Status: "STATUS"}

func newPSRow(b api.Sandbox, noTrunc bool) psRow {
	return psRow{
		ID: shownID(b.ID, noTrunc), Names: b.Name, Command: shownCommand(b.Command, noTrunc), CreatedAt: b.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		RunningFor: humanDuration(time.Since(b.Created)) + " ago", Ports: shownPorts(b), State: string(b.Status), Status: statusText(b),
		Networks: shownNetwork(b.Network), Labels: labelsText(b.Labels), Size: "0B", LocalVolumes: "0", labels: b.Labels,
	}
}

// statusText is the status in docker's words: "Up 5 minutes", "Exited (1) 2 hours ago".
func statusText(b api.Sandbox) string {
	code := 0
	if b.ExitCode != nil {
		code = *b.ExitCode
	}
	switch b.Status {
	case api.StatusRunning:
		since := b.Started
		if since.IsZero() { // a sandbox of a version that does not record it
			since = b.Created
		}
		return "Up " + humanDuration(time.Since(since))
	case api.StatusLingering: // docker has no such state: others use the network of a command that has ended
		return fmt.Sprintf("Lingering (%d)", code)
	case api.StatusExited:
		return fmt.Sprintf("Exited (%d) %s ago", code, humanDuration(time.Since(b.Finished)))
	}
	return "Created"
}

// list describes all sandboxes, the newest first. It asks those that are live in parallel, and describes the others, and one that
// does not answer, by their records.
func (p *program) list(ctx context.Context) ([]api.Sandbox, error) {
	dir, err := state.Open(p.stateDir)
	if err != nil {
		return nil, err
	}
	records, err := dir.ListAll()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	boxes := make([]api.Sandbox, len(records))
	var requests sync.WaitGroup
	for i, r := range records {
		if r.Status == state.Exited {
			boxes[i] = endedBox(dir, r)
			continue
		}
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

// endedBox describes a sandbox that has ended.
func endedBox(dir *state.Dir, r state.Record) api.Sandbox {
	box := api.SandboxFromRecord(r)
	box.StateDir = dir.PathOf(r)
	return box
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
			humanDuration(time.Since(b.Created)), statusText(b), shownNetwork(b.Network), shownPorts(b), b.Name)
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
