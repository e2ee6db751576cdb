package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
)

// The chart has one panel of bars for each figure, in columns. It has a background of its own, light or dark as the viewer prefers, so
// that it is readable on every page.

// Sizes in pixels.
const (
	chartColumns = 3
	panelWidth   = 440
	panelGap     = 24
	margin       = 20
	labelWidth   = 212
	valueWidth   = 62
	barHeight    = 13
	barStep      = 18
	titleHeight  = 30
	headHeight   = 66
)

// maxLabel is the maximum number of characters of a label.
const maxLabel = 34

type panel struct {
	title, metric string
}

var panels = []panel{
	{"TCP out, Gb/s", "tcp-out"}, {"TCP in, Gb/s", "tcp-in"}, {"TCP out, 8 streams, Gb/s", "tcp-out-8"},
	{"Round trips, 1/s", "tcp-rr"}, {"Connects, 1/s", "tcp-crr"}, {"Connects, 16 at a time, 1/s", "tcp-crr-16"},
	{"UDP round trips, 1/s", "udp-rr"}, {"UDP, 1400 bytes, arrived/s", "udp-1400"}, {"UDP, 9000 bytes, arrived/s", "udp-9000"},
	{"Published port, in, Gb/s", "pub-in"}, {"Published port, out, Gb/s", "pub-out"}, {"HTTP pages by 16 connections, 1/s", "http-16"},
}

const chartStyle = `
.page { fill: #ffffff; }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 13px; }
.note { fill: #57606a; }
.ours-text { font-weight: 600; }
.none { fill: #8c959f; }
.kernel { fill: #6e7781; }
.ours { fill: #2f81f7; }
.peer { fill: #d4a05a; }
.spread { stroke: #57606a; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; }
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .spread { stroke: #9198a1; }
}
`

// bar is one bar of a panel.
type bar struct {
	helper HelperInfo
	Summary
}

// svg returns the chart.
func (r *Report) svg() []byte {
	var body bytes.Buffer
	y := headHeight
	for start := 0; start < len(panels); start += chartColumns {
		most := 0
		x := margin
		for _, p := range panels[start:min(start+chartColumns, len(panels))] {
			bars := r.bars(p.metric)
			if len(bars) == 0 {
				continue
			}
			drawPanel(&body, x, y, p.title, bars)
			most = max(most, len(bars))
			x += panelWidth + panelGap
		}
		if most > 0 {
			y += titleHeight + most*barStep + panelGap
		}
	}
	width := chartColumns*(panelWidth+panelGap) - panelGap + 2*margin
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`,
		width, y, width, y)
	fmt.Fprintf(&out, "\n<title>Networks without root compared</title>\n<style>%s</style>\n", chartStyle)
	fmt.Fprintf(&out, "<rect class=\"page\" width=\"%d\" height=\"%d\" rx=\"8\"/>\n", width, y)
	fmt.Fprintf(&out, "<text class=\"title\" x=\"%d\" y=\"28\">Networks without root, one run on one machine: longer is better</text>\n", margin)
	fmt.Fprintf(&out, "<text class=\"note\" x=\"%d\" y=\"46\">%s</text>\n", margin, escape(r.heading()))
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// bars returns the bars of a metric: no helper, docker0 and ours in the order of the report, then the peers, the best one first.
func (r *Report) bars(metric string) (bars []bar) {
	for _, h := range r.Helpers {
		if row := r.row(metric, r.mainMTU(), h.Name); row != nil && len(row.Values) > 0 {
			bars = append(bars, bar{h, row.Summary})
		}
	}
	slices.SortStableFunc(bars, func(a, b bar) int {
		if a.helper.Kind != kindPeer || b.helper.Kind != kindPeer {
			return cmp.Compare(rank(a), rank(b))
		}
		return cmp.Compare(b.Median, a.Median)
	})
	return bars
}

func rank(b bar) int {
	return slices.Index([]kind{kindNone, kindKernel, kindOurs, kindPeer}, b.helper.Kind)
}

func drawPanel(w *bytes.Buffer, x, y int, title string, bars []bar) {
	const room = panelWidth - labelWidth - valueWidth
	fmt.Fprintf(w, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", x, y+14, escape(title))
	var most float64
	for _, b := range bars {
		most = max(most, b.Max)
	}
	scale := func(v float64) float64 {
		if most == 0 {
			return 0
		}
		return v / most * room
	}
	for i, b := range bars {
		top := y + titleHeight + i*barStep - 6
		base := top + barHeight - 2
		class := ""
		if b.helper.Kind == kindOurs {
			class = ` class="ours-text"`
		}
		fmt.Fprintf(w, "<text%s x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", class, x+labelWidth-6, base, escape(short(b.helper)))
		fmt.Fprintf(w, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>\n",
			b.helper.Kind, x+labelWidth, top, max(1, scale(b.Median)), barHeight)
		if b.Max > b.Min {
			middle := float64(top) + barHeight/2.0
			fmt.Fprintf(w, "<line class=\"spread\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
				float64(x+labelWidth)+scale(b.Min), middle, float64(x+labelWidth)+scale(b.Max), middle)
		}
		fmt.Fprintf(w, "<text%s x=\"%.1f\" y=\"%d\">%s</text>\n", class, float64(x+labelWidth)+scale(b.Max)+6, base, figure(b.Median))
	}
}

// short returns a label of at most maxLabel characters.
func short(h HelperInfo) string {
	runes := []rune(chartLabel(h))
	if len(runes) > maxLabel {
		return string(runes[:maxLabel-1]) + "…"
	}
	return string(runes)
}

// chartLabel returns a label for the chart. Labels of RootlessKit are shortened to what distinguishes its drivers.
func chartLabel(h HelperInfo) string {
	switch h.Name {
	case stackName, spliceName:
		return h.Name
	}
	text := label(h)
	for _, r := range []struct{ long, short string }{
		{"rootlesskit ", "RootlessKit "}, {"gvisor-tap-vsock + gvisor-tap-vsock", "gvisor"}, {"gvisor-tap-vsock", "gvisor"},
		{"slirp4netns + slirp4netns", "slirp4netns"}, {" + ", "+"}, {"slirp4netns+", "slirp+"}, {", ", " "},
	} {
		if len(text) <= maxLabel && r.short != "RootlessKit " {
			break
		}
		text = strings.ReplaceAll(text, r.long, r.short)
	}
	return text
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a write to a buffer returns no error
	return b.String()
}
