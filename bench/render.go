package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// render reads a Report from a JSON file and writes compare.md and compare.svg into dir.
func render(path, dir string) error {
	r, err := readReport(path)
	if err != nil {
		return err
	}
	var md bytes.Buffer
	r.markdown(&md)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "compare.md"), md.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, "compare.svg"), r.svg(), 0o644))
}

func readReport(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// The targets may have been changed since the report was written.
	r.compare()
	r.Targets = targets(&r)
	return &r, nil
}

// column is a column of a table of the comparison.
type column struct {
	title, metric string
	small         bool // at the last MTU instead of the main one
}

// group is a table of the comparison.
type group struct {
	title   string
	columns []column
}

var groups = []group{
	{"TCP streams, Gb/s", []column{
		{title: "out", metric: "tcp-out"}, {title: "in", metric: "tcp-in"},
		{title: "out ×8", metric: "tcp-out-8"}, {title: "in ×8", metric: "tcp-in-8"},
		{title: "out", metric: "tcp-out", small: true}, {title: "in", metric: "tcp-in", small: true},
		{title: "out ×8", metric: "tcp-out-8", small: true}, {title: "in ×8", metric: "tcp-in-8", small: true}}},
	{"Processor seconds for each GB, of the helper and of all", []column{
		{title: "out, helper", metric: "tcp-out.cpu-helper"}, {title: "out, all", metric: "tcp-out.cpu"},
		{title: "in, helper", metric: "tcp-in.cpu-helper"}, {title: "in, all", metric: "tcp-in.cpu"},
		{title: "published in, all", metric: "pub-in.cpu"}, {title: "published out, all", metric: "pub-out.cpu"}}},
	{"Published port", []column{
		{title: "in, Gb/s", metric: "pub-in"}, {title: "out, Gb/s", metric: "pub-out"},
		{title: "real source", metric: "pub-source"},
		{title: "connects/s", metric: "pub-crr"}, {title: "connects/s, 16", metric: "pub-crr-16"},
		{title: "HTTP/s, 1", metric: "http-1"}, {title: "HTTP/s, 16", metric: "http-16"}, {title: "HTTP/s, 64", metric: "http-64"}}},
	{"Round trips and connects of TCP, 1/s, and their 99th percentile, µs", []column{
		{title: "round trips", metric: "tcp-rr"}, {title: "p99", metric: "tcp-rr.p99"},
		{title: "by 16", metric: "tcp-rr-16"}, {title: "p99", metric: "tcp-rr-16.p99"},
		{title: "connects", metric: "tcp-crr"}, {title: "p99", metric: "tcp-crr.p99"},
		{title: "by 16", metric: "tcp-crr-16"}, {title: "p99", metric: "tcp-crr-16.p99"}}},
	{"UDP", []column{
		{title: "round trips/s", metric: "udp-rr"}, {title: "p99, µs", metric: "udp-rr.p99"},
		{title: "1400 bytes, arrived/s", metric: "udp-1400"}, {title: "lost, %", metric: "udp-1400.loss"},
		{title: "9000 bytes, arrived/s", metric: "udp-9000"}, {title: "lost, %", metric: "udp-9000.loss"}}},
	{"Start and memory", []column{
		{title: "start and end of `true`, ms", metric: "startup"},
		{title: "idle RSS, MB", metric: "memory.rss"}, {title: "idle PSS, MB", metric: "memory.pss"},
		{title: "an idle connection, KB", metric: "memory.conn"}}},
}

// markdown writes the comparison.
func (r *Report) markdown(w io.Writer) {
	fmt.Fprintf(w, "# The comparison\n\n%s.\n\n", r.heading())
	fmt.Fprint(w, "Made by `make compare`; what is measured and how is in [doc.go](../doc.go). All helpers run one after the other on the "+
		"same cores as client and server: compare the figures with each other, not with other machines.\n\n")
	if len(r.Missing) > 0 {
		fmt.Fprint(w, "Not there:\n\n")
		for _, m := range r.Missing {
			fmt.Fprintf(w, "- %s: %s\n", m.Name, m.Why)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "![chart](compare.svg)\n")
	for _, g := range groups {
		r.writeGroup(w, g)
	}
	r.writeFailures(w)
	fmt.Fprintln(w, "\n## Targets of the default configuration")
	r.writeTargets(w, true)
}

// mtu returns the MTU of a column.
func (r *Report) mtu(c column) int {
	all := r.mtus()
	if len(all) == 0 {
		return 0
	}
	if c.small {
		return all[len(all)-1]
	}
	return all[0]
}

// taken returns the columns that have a figure.
func (r *Report) taken(columns []column) (kept []column) {
	for _, c := range columns {
		if c.small && len(r.mtus()) < 2 {
			continue
		}
		if _, _, ok := r.best(c.metric, r.mtu(c), func(HelperInfo) bool { return true }); ok {
			kept = append(kept, c)
		}
	}
	return kept
}

func (r *Report) writeGroup(w io.Writer, g group) {
	columns := r.taken(g.columns)
	if len(columns) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## %s\n\n| |", g.title)
	for _, c := range columns {
		title := c.title
		if c.small {
			title += fmt.Sprintf(", MTU %d", r.mtu(c))
		}
		fmt.Fprintf(w, " %s |", title)
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|", len(columns)))
	for _, h := range r.Helpers {
		var cells []string
		var any bool
		for _, c := range columns {
			cell := r.cell(c, h.Name)
			any = any || cell != ""
			cells = append(cells, cell)
		}
		if any {
			fmt.Fprintf(w, "| %s | %s |\n", bold(h, label(h)), strings.Join(cells, " | "))
		}
	}
	for _, h := range r.Helpers {
		if h.Kind == kindOurs {
			r.writeRatios(w, h.Name, columns)
		}
	}
}

// bold returns text in bold type if the helper is ours.
func bold(h HelperInfo, text string) string {
	if h.Kind == kindOurs {
		return "**" + text + "**"
	}
	return text
}

// label returns a helper's name for tables: that of "rootlesskit-3.0.1:slirp4netns:builtin" is "rootlesskit 3.0.1, slirp4netns +
// builtin".
func label(h HelperInfo) string {
	name, drivers, ok := strings.Cut(h.Name, ":")
	name = strings.Replace(name, "-"+h.Version, " "+h.Version, 1)
	if h.Name == noneName {
		name = "no helper"
	}
	if path, is := strings.CutPrefix(name, oursName+"/"); is {
		name = oursName + " --datapath " + path
	}
	if !ok {
		return name
	}
	return name + ", " + strings.Replace(drivers, ":", " + ", 1)
}

// cell returns a figure with its minimum and maximum.
func (r *Report) cell(c column, helper string) string {
	row := r.row(c.metric, r.mtu(c), helper)
	switch {
	case row == nil || row.Skipped != "":
		return ""
	case len(row.Values) == 0:
		return "failed"
	case c.metric == "pub-source":
		if row.Min == 1 {
			return "yes"
		}
		return "no"
	case row.Min == row.Max:
		return figure(row.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", figure(row.Median), figure(row.Min), figure(row.Max))
}

// writeRatios writes the ratios of the figures of a helper of ours to those of no helper, docker0 and the best peer.
func (r *Report) writeRatios(w io.Writer, name string, columns []column) {
	type base struct {
		title string
		value func(column) (float64, string, bool)
	}
	of := func(helper string) func(column) (float64, string, bool) {
		return func(c column) (float64, string, bool) {
			v, ok := r.median(c.metric, r.mtu(c), helper)
			return v, "", ok
		}
	}
	for _, b := range []base{{"no helper", of(noneName)}, {dockerName, of(dockerName)},
		{"the best peer", func(c column) (float64, string, bool) {
			peer, v, ok := r.best(c.metric, r.mtu(c), isPeer)
			return v, " (" + firstField(firstField(peer, ":"), "-") + ")", ok
		}}} {
		var cells []string
		var any bool
		for _, c := range columns {
			cell := ""
			mine, ok := r.median(c.metric, r.mtu(c), name)
			if v, peer, has := b.value(c); ok && has && v > 0 && c.metric != "pub-source" {
				cell, any = figure(mine/v)+" ×"+peer, true
			}
			cells = append(cells, cell)
		}
		if any {
			fmt.Fprintf(w, "| *%s ÷ %s* | %s |\n", name, b.title, strings.Join(cells, " | "))
		}
	}
}

func (r *Report) writeFailures(w io.Writer) {
	var lines []string
	reported := map[string]bool{} // the series of one metric fail together: one line for all
	for _, row := range r.Rows {
		key := firstField(row.Metric, ".") + row.Helper + fmt.Sprint(row.MTU)
		if row.Failures == 0 || reported[key] {
			continue
		}
		reported[key] = true
		lines = append(lines, fmt.Sprintf("- %s, MTU %d, %s: %d of %d: %s", firstField(row.Metric, "."), row.MTU, row.Helper,
			row.Failures, row.Failures+len(row.Values), strings.Join(strings.Fields(row.Error), " ")))
	}
	if len(lines) > 0 {
		fmt.Fprintf(w, "\n## What failed\n\n%s\n", strings.Join(lines, "\n"))
	}
}
