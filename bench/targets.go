package main

import (
	"fmt"
	"io"
)

// Target is a goal of the default configuration and the value in a Report.
type Target struct {
	What   string  `json:"what"`
	Versus string  `json:"versus,omitempty"` // helper that it is compared with
	Value  float64 `json:"value"`
	Bound  float64 `json:"bound"`
	AtMost bool    `json:"at_most,omitempty"` // the bound is an upper one, otherwise a lower one
	Unit   string  `json:"unit"`
	Known  bool    `json:"known"` // false if one of the figures is missing
	Met    bool    `json:"met"`
}

// judge computes the targets of a report.
type judge struct {
	r    *Report
	main int // the main MTU
	all  []Target
}

// add sets Met of a target and appends it.
func (j *judge) add(t Target) {
	t.Met = t.Known && (t.AtMost && t.Value <= t.Bound || !t.AtMost && t.Value >= t.Bound)
	j.all = append(j.all, t)
}

// against adds the target that the ratio of helper's figure to that of versus is at least bound.
func (j *judge) against(what, metric, helper, versus string, bound float64) {
	a, ok1 := j.r.median(metric, j.main, helper)
	b, ok2 := j.r.median(metric, j.main, versus)
	t := Target{What: what, Versus: versus, Bound: bound, Unit: "×", Known: ok1 && ok2 && b > 0}
	if t.Known {
		t.Value = a / b
	}
	j.add(t)
}

// ahead adds the target that the ratio of helper's figure to the best of the helpers that match is at least bound, or at most with
// atMost. name is shown if none of the helpers has a figure.
func (j *judge) ahead(what, metric, helper string, match func(HelperInfo) bool, name string, bound float64, atMost bool) {
	a, ok := j.r.median(metric, j.main, helper)
	best, b, found := j.r.best(metric, j.main, match)
	t := Target{What: what, Versus: name, Bound: bound, AtMost: atMost, Unit: "×", Known: ok && found && b > 0}
	if t.Known {
		t.Value, t.Versus = a/b, best
	}
	j.add(t)
}

// absolute adds the target that rootless-run's figure, less that of the helper less (unless that is ""), is at most bound.
func (j *judge) absolute(what, metric, less string, bound float64, unit string) {
	a, ok := j.r.median(metric, j.main, oursName)
	t := Target{What: what, Versus: less, Bound: bound, AtMost: true, Unit: unit, Known: ok, Value: a}
	if less != "" {
		b, has := j.r.median(metric, j.main, less)
		t.Known = ok && has
		t.Value -= b
	}
	j.add(t)
}

// streamNames are the metrics of one TCP stream.
var streamNames = []struct{ metric, what string }{{"tcp-out", "TCP out"}, {"tcp-in", "TCP in"}}

// targets returns the targets of the default configuration, and then those of --datapath stack.
func targets(r *Report) []Target {
	const peers = "the best peer"
	j := &judge{r: r, main: r.mainMTU()}
	for _, m := range streamNames {
		j.against(m.what, m.metric, oursName, noneName, 0.85)
		j.against(m.what, m.metric, oursName, dockerName, 0.95)
		j.ahead(m.what, m.metric, oursName, peerCalled("pasta"), "the best pasta", 1, false)
		j.ahead(m.what+", 8 streams", m.metric+"-8", oursName, isPeer, peers, 1, false)
	}
	for _, m := range streamNames {
		j.smallMTU(m.what, m.metric)
	}
	for _, m := range []struct{ metric, what string }{{"pub-in", "published port, in"}, {"pub-out", "published port, out"}} {
		j.against(m.what, m.metric, oursName, noneName, 0.85)
		j.ahead(m.what, m.metric, oursName, peerCalled("rootlesskit", ":builtin"), "RootlessKit builtin", 1, false)
	}
	j.ahead("published port, connects", "pub-crr", oursName, isPeer, peers, 1.1, false)
	j.ahead("published port, connects, 16 at a time", "pub-crr-16", oursName, isPeer, peers, 1.1, false)
	real, ok := r.median("pub-source", j.main, oursName)
	j.add(Target{What: "published port, real source address", Value: real, Bound: 1, Known: ok})
	for _, m := range []struct {
		metric, what string
		bound        float64
	}{{"tcp-rr", "round trips", 1}, {"tcp-rr-16", "round trips, 16 at a time", 1},
		{"tcp-crr", "connects", 1.1}, {"tcp-crr-16", "connects, 16 at a time", 1.1}} {
		j.ahead(m.what, m.metric, oursName, isPeer, peers, m.bound, false)
		j.ahead(m.what+", p99", m.metric+".p99", oursName, isPeer, peers, 1, true)
	}
	j.ahead("UDP round trips", "udp-rr", oursName, isPeer, peers, 1.1, false)
	j.ahead("UDP delivered, 1400 bytes", "udp-1400", oursName, isPeer, peers, 1.3, false)
	j.ahead("UDP delivered, 9000 bytes", "udp-9000", oursName, isPeer, peers, 1.3, false)
	for _, m := range streamNames {
		j.ahead(m.what+", CPU of the helper per GB", m.metric+".cpu-helper", oursName, isPeer, peers, 1, true)
		j.ahead(m.what+", CPU of all per GB", m.metric+".cpu", oursName, isPeer, peers, 1, true)
	}
	j.absolute("start-up over `unshare -Urn true`", "startup", noneName, 40, "ms")
	j.absolute("idle memory (RSS)", "memory.rss", "", 25, "MB")
	j.absolute("memory of an idle connection", "memory.conn", "", 20, "KB")
	for _, m := range streamNames {
		j.against(m.what+", --datapath stack", m.metric, stackName, noneName, 0.5)
		j.ahead(m.what+", --datapath stack", m.metric, stackName, peerCalled("gvisor-tap-vsock"), "gvisor-tap-vsock", 3, false)
	}
	return j.all
}

// smallMTU adds the target that rootless-run's figure at the last MTU is at least 95% of that at the main one.
func (j *judge) smallMTU(what, metric string) {
	all := j.r.mtus()
	if len(all) < 2 {
		return
	}
	small := all[len(all)-1]
	a, ok1 := j.r.median(metric, small, oursName)
	b, ok2 := j.r.median(metric, j.main, oursName)
	t := Target{What: fmt.Sprintf("%s, MTU %d", what, small), Versus: fmt.Sprintf("MTU %d", j.main), Bound: 0.95, Unit: "×",
		Known: ok1 && ok2 && b > 0}
	if t.Known {
		t.Value = a / b
	}
	j.add(t)
}

// writeTargets writes the targets as a table; without all only those that have a value.
func (r *Report) writeTargets(w io.Writer, all bool) {
	var known, met int
	for _, t := range r.Targets {
		if t.Known {
			known++
		}
		if t.Met {
			met++
		}
	}
	if known == 0 {
		return
	}
	fmt.Fprintf(w, "\n%d of %d targets met, %d not measured\n\n", met, known, len(r.Targets)-known)
	fmt.Fprintln(w, "| target | against | wanted | is | |")
	fmt.Fprintln(w, "|---|---|---|---|---|")
	for _, t := range r.Targets {
		if !t.Known && !all {
			continue
		}
		sign, state := "≥", "no"
		if t.AtMost {
			sign = "≤"
		}
		if t.Met {
			state = "yes"
		}
		if !t.Known {
			state = "?"
		}
		is := ""
		if t.Known {
			is = figure(t.Value) + " " + t.Unit
		}
		fmt.Fprintf(w, "| %s | %s | %s %s %s | %s | %s |\n", t.What, t.Versus, sign, figure(t.Bound), t.Unit, is, state)
	}
}
