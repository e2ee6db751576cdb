package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampleReport returns a report of no helper, docker0, rootless-run and two peers, with figures that have simple ratios.
func sampleReport() *Report {
	r := &Report{Kernel: "6.1", CPUs: 2, Version: "v1 <x>", LanMTU: 1500, Seconds: 1, Runs: 3,
		Helpers: []HelperInfo{{noneName, kindNone, ""}, {dockerName, kindKernel, ""}, {oursName, kindOurs, "v1"},
			{"pasta-2024_12_11", kindPeer, "2024_12_11"}, {"rootlesskit-3.0.1:slirp4netns:builtin", kindPeer, "3.0.1"}}}
	add := func(metric, unit string, lowWins bool, mtu int, medians ...float64) {
		for i, m := range medians {
			row := Row{Metric: metric, Unit: unit, LowWins: lowWins, MTU: mtu, Helper: r.Helpers[i].Name}
			if math.IsNaN(m) {
				row.Failures, row.Error = 3, "did not\nstart"
			} else {
				row.Values = []float64{m * 0.9, m, m * 1.2}
				row.Summary = summarise(row.Values)
			}
			r.Rows = append(r.Rows, row)
		}
	}
	add("tcp-out", "Gb/s", false, 65520, 20, 16, 18, 9, 4)
	add("tcp-out.cpu", "s/GB", true, 65520, 0.4, 0.5, 0.6, 0.8, 1.2)
	add("tcp-out", "Gb/s", false, 1500, 20, 16, 17.5, 1, math.NaN())
	add("pub-in", "Gb/s", false, 65520, 20, 16, 12, 10, 15)
	add("startup", "ms", true, 65520, 2, math.NaN(), 45, 60, 80)
	r.compare()
	r.Targets = targets(r)
	return r
}

func TestSummarise(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want Summary
	}{
		{nil, Summary{}},
		{[]float64{3}, Summary{3, 3, 3}},
		{[]float64{3, 1, 2}, Summary{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, Summary{2.5, 1, 4}},
	} {
		if got := summarise(c.in); got != c.want {
			t.Errorf("summarise(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}

func TestBestPeerDependsOnTheUnit(t *testing.T) {
	r := sampleReport()
	if name, v, _ := r.best("tcp-out", 65520, isPeer); name != "pasta-2024_12_11" || v != 9 {
		t.Errorf("most: %s %v", name, v)
	}
	if name, v, _ := r.best("tcp-out.cpu", 65520, isPeer); name != "pasta-2024_12_11" || v != 0.8 {
		t.Errorf("least: %s %v", name, v)
	}
	if name, _, ok := r.best("tcp-out", 1500, peerCalled("rootlesskit")); ok {
		t.Errorf("a helper that failed is the best: %s", name)
	}
}

func TestTargets(t *testing.T) {
	r := sampleReport()
	want := map[string]struct {
		value      float64
		known, met bool
	}{
		"TCP out/none":                {0.9, true, true},
		"TCP out/docker0":             {1.125, true, true},
		"TCP out/pasta-2024_12_11":    {2, true, true},
		"TCP out, MTU 1500/MTU 65520": {17.5 / 18, true, true},
		"published port, in/none":     {0.6, true, false},
		"published port, in/rootlesskit-3.0.1:slirp4netns:builtin": {0.8, true, false},
		"TCP out, CPU of all per GB/pasta-2024_12_11":              {0.75, true, true},
		"start-up over `unshare -Urn true`/none":                   {43, true, false},
		"TCP in/none":                                              {0, false, false},
	}
	for _, got := range r.Targets {
		w, ok := want[got.What+"/"+got.Versus]
		if !ok {
			if got.Known {
				t.Errorf("%s, compared with %s, has a value: %v", got.What, got.Versus, got.Value)
			}
			continue
		}
		delete(want, got.What+"/"+got.Versus)
		if math.Abs(got.Value-w.value) > 1e-9 || got.Known != w.known || got.Met != w.met {
			t.Errorf("%+v, want %+v", got, w)
		}
	}
	for missing := range want {
		t.Errorf("no target %s", missing)
	}
}

func TestMarkdownHasRatiosSpreadAndFailures(t *testing.T) {
	var b bytes.Buffer
	r := sampleReport()
	r.Missing = []missing{{"slirp4netns", "not here"}}
	r.markdown(&b)
	for _, want := range []string{
		"| **rootless-run** | 18.0 (16.2–21.6) |",
		"*rootless-run ÷ no helper* | 0.90 ×",
		"*rootless-run ÷ docker0* | 1.12 ×",
		"2.00 × (pasta)",
		"| rootlesskit 3.0.1, slirp4netns + builtin | 4.00 (3.60–4.80) | failed |",
		"- tcp-out, MTU 1500, rootlesskit-3.0.1:slirp4netns:builtin: 3 of 3: did not start",
		"- slirp4netns: not here",
		"| published port, in | none | ≥ 0.85 × | 0.60 × | no |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestChartIsXMLAndEscapes(t *testing.T) {
	d := xml.NewDecoder(bytes.NewReader(sampleReport().svg()))
	var bars int
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if want := 1 + 2*5; bars != want { // the page, and two panels
		t.Errorf("%d bars, want %d", bars, want)
	}
}

func TestReadmeKeepsWhatStandsAround(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "README.md")
	report := filepath.Join(dir, "r.json")
	if err := os.WriteFile(report, []byte(`{"helpers":[{"name":"rootless-run","kind":"ours"}],`+
		`"rows":[{"metric":"tcp-out","unit":"Gb/s","mtu":1500,"helper":"rootless-run","values":[2],"median":2}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("before\n"+figuresBegin+"old\n"+figuresEnd+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := renderReadme(report, path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := string(text)
	if !strings.HasPrefix(s, "before\n"+figuresBegin) || !strings.HasSuffix(s, figuresEnd+"after\n") || strings.Contains(s, "old") ||
		!strings.Contains(s, "| TCP out, Gb/s |  |  | **2.00** |  |") {
		t.Errorf("README is now\n%s", s)
	}
}

func TestFigureHasThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0.1234: "0.12", 9.876: "9.88", 12.34: "12.3", 123.4: "123", 12345: "12,345", 158000: "158,000"} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %q, want %q", v, got, want)
		}
	}
}
