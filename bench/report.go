package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Report is the JSON that is written to stdout.
type Report struct {
	Kernel  string  `json:"kernel"`
	CPUs    int     `json:"cpus"`
	Version string  `json:"version"` // of rootless-run
	LanMTU  int     `json:"lan_mtu"`
	Seconds float64 `json:"seconds"` // time of each measurement of a rate
	Runs    int     `json:"runs"`
	// TCP is the congestion control and the receive buffers of TCP outside of the helpers.
	TCP     string       `json:"tcp"`
	Helpers []HelperInfo `json:"helpers"`
	Missing []missing    `json:"missing,omitempty"`
	Rows    []Row        `json:"rows"`
	Targets []Target     `json:"targets,omitempty"`
}

// HelperInfo is a helper that was measured.
type HelperInfo struct {
	Name    string `json:"name"`
	Kind    kind   `json:"kind"`
	Version string `json:"version,omitempty"`
}

// Row is one figure of one helper.
type Row struct {
	Metric  string    `json:"metric"`
	Unit    string    `json:"unit"`
	LowWins bool      `json:"low_wins,omitempty"`
	MTU     int       `json:"mtu"`
	Helper  string    `json:"helper"`
	Values  []float64 `json:"values,omitempty"`
	Summary
	Ratio float64 `json:"ratio,omitempty"` // median divided by the median of no helper; 0 if there is none
	// Failures is the number of runs without a value, Error the error of the last of them.
	Failures int    `json:"failures,omitempty"`
	Error    string `json:"error,omitempty"`
	// Skipped is the reason why the metric does not apply; that is not an error.
	Skipped string `json:"skipped,omitempty"`
}

// Summary summarises the values of several runs.
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

// compare sets the ratios.
func (r *Report) compare() {
	for i := range r.Rows {
		row := &r.Rows[i]
		if base, ok := r.median(row.Metric, row.MTU, noneName); ok && base > 0 {
			row.Ratio = row.Median / base
		}
	}
}

// row returns a figure, or nil if it was not measured.
func (r *Report) row(metric string, mtu int, helper string) *Row {
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Metric == metric && row.MTU == mtu && row.Helper == helper {
			return row
		}
	}
	return nil
}

// median returns the median of a figure, or false if there is none.
func (r *Report) median(metric string, mtu int, helper string) (float64, bool) {
	row := r.row(metric, mtu, helper)
	if row == nil || len(row.Values) == 0 {
		return 0, false
	}
	return row.Median, true
}

// best returns the best median of the helpers that match, and the helper's name.
func (r *Report) best(metric string, mtu int, match func(HelperInfo) bool) (helper string, value float64, ok bool) {
	for _, h := range r.Helpers {
		row := r.row(metric, mtu, h.Name)
		if !match(h) || row == nil || len(row.Values) == 0 {
			continue
		}
		if !ok || row.LowWins == (row.Median < value) && row.Median != value {
			helper, value, ok = h.Name, row.Median, true
		}
	}
	return helper, value, ok
}

func isPeer(h HelperInfo) bool { return h.Kind == kindPeer }

// peerCalled returns a function that matches peers by names that contain all the words.
func peerCalled(words ...string) func(HelperInfo) bool {
	return func(h HelperInfo) bool {
		return h.Kind == kindPeer && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(h.Name, w) })
	}
}

// mtus returns the MTUs that were measured, the main one first.
func (r *Report) mtus() []int {
	var all []int
	for _, row := range r.Rows {
		if !slices.Contains(all, row.MTU) {
			all = append(all, row.MTU)
		}
	}
	return all
}

// mainMTU returns the MTU at which everything was measured.
func (r *Report) mainMTU() int {
	if all := r.mtus(); len(all) > 0 {
		return all[0]
	}
	return 0
}

func (r *Report) failed() bool {
	return slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Error != "" && len(row.Values) == 0 })
}

// heading returns the conditions of the measurements: kernel, processors, version, network and repetitions.
func (r *Report) heading() string {
	return fmt.Sprintf("Linux %s, %d CPUs, %s; link outside with MTU %d, %s; %g s each, median of %d (least–greatest)",
		r.Kernel, r.CPUs, r.Version, r.LanMTU, r.TCP, r.Seconds, r.Runs)
}

// table writes the rows as Markdown.
func (r *Report) table(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n", r.heading())
	fmt.Fprintln(w, "| what | MTU | helper | median | least–greatest | × no helper |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, row := range r.Rows {
		switch {
		case row.Skipped != "":
			continue
		case len(row.Values) == 0:
			fmt.Fprintf(w, "| %s | %d | %s | **failed**: %s | | |\n", row.Metric, row.MTU, row.Helper, row.Error)
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
		if row.Skipped != "" && row.Helper != noneName && row.Helper != dockerName {
			fmt.Fprintf(w, "\n%s of %s: %s\n", row.Metric, row.Helper, row.Skipped)
		}
	}
}

// figure formats a figure with about three digits.
func figure(v float64) string {
	switch {
	case v >= 10000:
		s := fmt.Sprintf("%.0f", v)
		return s[:len(s)-3] + "," + s[len(s)-3:]
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
