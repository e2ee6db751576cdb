package main

import (
	"fmt"
	"io"
	"slices"
)

// Report is the JSON that is written to stdout.
type Report struct {
	Kernel  string  `json:"kernel"`
	CPUs    int     `json:"cpus"`
	Version string  `json:"version"` // of rootless-run
	LanMTU  int     `json:"lan_mtu"`
	Seconds float64 `json:"seconds"` // of each measurement of a rate
	Rows    []Row   `json:"rows"`
}

// Row is one metric of one helper.
type Row struct {
	Metric string    `json:"metric"`
	Unit   string    `json:"unit"`
	MTU    int       `json:"mtu"`
	Helper string    `json:"helper"`
	Values []float64 `json:"values,omitempty"`
	Summary
	Ratio float64 `json:"ratio,omitempty"` // median over the median of no helper; 0 when there is none
	Error string  `json:"error,omitempty"`
	// Skipped says why it makes no sense here; it is not an error.
	Skipped string `json:"skipped,omitempty"`
}

// Summary of some values.
type Summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func summarise(values []float64) Summary {
	if len(values) == 0 {
		return Summary{}
	}
	v := slices.Sorted(slices.Values(values))
	median := v[len(v)/2]
	if len(v)%2 == 0 {
		median = (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return Summary{Median: median, Min: v[0], Max: v[len(v)-1]}
}

// compare fills the ratios in.
func (r *Report) compare() {
	type key struct {
		metric string
		mtu    int
	}
	base := map[key]float64{}
	for _, row := range r.Rows {
		if row.Helper == (none{}).Name() {
			base[key{row.Metric, row.MTU}] = row.Median
		}
	}
	for i, row := range r.Rows {
		if b := base[key{row.Metric, row.MTU}]; b > 0 {
			r.Rows[i].Ratio = row.Median / b
		}
	}
}

func (r *Report) failed() bool {
	return slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Error != "" })
}

// table writes the rows as Markdown.
func (r *Report) table(w io.Writer) {
	fmt.Fprintf(w, "\nLinux %s, %d CPUs, %s; link outside with MTU %d; %g s each, median (least–greatest)\n\n",
		r.Kernel, r.CPUs, r.Version, r.LanMTU, r.Seconds)
	fmt.Fprintln(w, "| what | MTU | helper | median | least–greatest | × no helper |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, row := range r.Rows {
		switch {
		case row.Error != "":
			fmt.Fprintf(w, "| %s | %d | %s | **failed**: %s | | |\n", row.Metric, row.MTU, row.Helper, row.Error)
		case row.Skipped != "":
			continue
		default:
			ratio := ""
			if row.Ratio != 0 {
				ratio = fmt.Sprintf("%.2f", row.Ratio)
			}
			fmt.Fprintf(w, "| %s | %d | %s | %s %s | %s–%s | %s |\n", row.Metric, row.MTU, row.Helper,
				figure(row.Median), row.Unit, figure(row.Min), figure(row.Max), ratio)
		}
	}
	for _, row := range r.Rows {
		if row.Skipped != "" && row.Helper != (none{}).Name() {
			fmt.Fprintf(w, "\n%s of %s: %s\n", row.Metric, row.Helper, row.Skipped)
		}
	}
}

// figure has about three digits.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
