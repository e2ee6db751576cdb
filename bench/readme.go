package main

import (
	"bytes"
	"fmt"
	"os"
)

// Lines of the README between which renderReadme writes the figures.
const (
	figuresBegin = "<!-- figures -->\n"
	figuresEnd   = "<!-- /figures -->\n"
)

// headlines are the metrics in the README's table.
var headlines = []struct{ title, metric string }{
	{"TCP out", "tcp-out"}, {"TCP in", "tcp-in"}, {"TCP out, 8 streams", "tcp-out-8"},
	{"published port, in", "pub-in"}, {"published port, out", "pub-out"},
	{"TCP round trips", "tcp-rr"}, {"connects", "tcp-crr"}, {"connects to a published port", "pub-crr"},
	{"UDP round trips", "udp-rr"}, {"UDP, 1400 bytes, arrived", "udp-1400"}, {"UDP, 9000 bytes, arrived", "udp-9000"},
	{"HTTP pages by 16 connections", "http-16"},
	{"CPU of all for TCP out (less is better)", "tcp-out.cpu"}, {"CPU of all for TCP in (less is better)", "tcp-in.cpu"},
	{"start and end of `true` (less is better)", "startup"}, {"idle memory, RSS (less is better)", "memory.rss"},
}

// renderReadme writes the figures of the metrics in headlines from a Report into the file at path.
func renderReadme(report, path string) error {
	r, err := readReport(report)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(text, []byte(figuresBegin))
	_, foot, ok2 := bytes.Cut(rest, []byte(figuresEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", path, figuresBegin, figuresEnd)
	}
	out := bytes.Join([][]byte{head, []byte(figuresBegin), r.headlines(), []byte(figuresEnd), foot}, nil)
	return os.WriteFile(path, out, 0o644)
}

func (r *Report) headlines() []byte {
	var w bytes.Buffer
	fmt.Fprintf(&w, "`make compare`: %s. Client, helper and server share the cores; compare within a row only.\n\n", r.heading())
	fmt.Fprint(&w, "![chart: this and the other helpers, figure by figure](bench/results/compare.svg)\n\n")
	fmt.Fprint(&w, "| what | no helper | docker0 (root) | `rootless-run` | the best other helper |\n|---|---|---|---|---|\n")
	mtu := r.mainMTU()
	for _, h := range headlines {
		mine := r.row(h.metric, mtu, oursName)
		if mine == nil || len(mine.Values) == 0 {
			continue
		}
		cell := func(helper string) string {
			if v, ok := r.median(h.metric, mtu, helper); ok {
				return figure(v)
			}
			return ""
		}
		peer := ""
		if best, v, ok := r.best(h.metric, mtu, isPeer); ok {
			peer = fmt.Sprintf("%s (%s)", figure(v), label(r.helper(best)))
		}
		fmt.Fprintf(&w, "| %s, %s | %s | %s | **%s** | %s |\n", h.title, mine.Unit, cell(noneName), cell(dockerName),
			figure(mine.Median), peer)
	}
	fmt.Fprint(&w, "\nAll figures, with their spread, and which of our targets they meet: [compare.md](bench/results/compare.md).\n")
	return w.Bytes()
}

// helper returns the helper of that name.
func (r *Report) helper(name string) HelperInfo {
	for _, h := range r.Helpers {
		if h.Name == name {
			return h
		}
	}
	return HelperInfo{Name: name}
}
