package doctor

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Status is the result of a check.
type Status string

const (
	OK      Status = "ok"      // tested, works
	Missing Status = "missing" // the kernel or the system does not have it
	Denied  Status = "denied"  // it exists, but this user may not use it
	Untried Status = "untried" // something that it depends on failed, or it did not answer in time
)

// Level reports whether sandboxes require a check.
type Level string

const (
	Required Level = "required" // without it no sandbox starts
	Optional Level = "optional" // without it the function named in Lost does not work
)

// Check is one line of the report.
type Check struct {
	Name   string `json:"name"`
	Group  string `json:"group"`
	Level  Level  `json:"level"`
	Status Status `json:"status"`
	Detail string `json:"detail"` // what the probe observed
	Lost   string `json:"lost"`   // what does not work without it
	Fix    string `json:"fix"`    // one command, or "no command:" and what is required
}

// Report is the whole result, in the order of the catalog.
type Report struct {
	OK     bool    `json:"ok"` // every required check is ok
	Kernel string  `json:"kernel"`
	UID    int     `json:"uid"`
	Checks []Check `json:"checks"`
}

// Options of Run. The zero value has the defaults.
type Options struct {
	// Timeout bounds the whole run; 0 means DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout of a run. Probes take tens of milliseconds; the rest is for a machine under load, and for probes that get no answer.
// With the time to report, a run takes two seconds at most.
const DefaultTimeout = 1800 * time.Millisecond

// finding is the result of a probe for one check. With an empty Fix the report has that of the catalog.
type finding struct {
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

// Run runs all probes and returns shortly after Options.Timeout at the latest. It has no error: what could not be tested is reported
// as untried. It may be called as any user, and concurrently.
func Run(ctx context.Context, opts Options) Report {
	if IsProbe() {
		// The program's main did not call ProbeMain: children would start children without end.
		return assemble(nil)
	}
	if opts.Timeout <= 0 {
		opts.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()

	hostc := make(chan map[string]finding, 1)
	go func() { hostc <- runAll(ctx, hostProbes(ctx), nil) }()
	pidc := make(chan map[string]finding, 1)
	go func() { pidc <- childProbe(ctx, rolePID) }()
	idsc := make(chan map[string]finding, 1)
	go func() { idsc <- probeIDs(ctx) }()
	found := childProbe(ctx, roleInside)
	for _, c := range []chan map[string]finding{hostc, pidc, idsc} {
		for name, f := range <-c {
			found[name] = f
		}
	}
	if user := found["user-namespace"]; user.Status != OK {
		found["pid-namespace"] = finding{Status: Untried, Detail: "no user namespace to test it in", Fix: user.Fix}
	}
	found["link"] = linkFinding(found)
	return assemble(found)
}

// assemble makes the report of the findings, in the order of the catalog.
func assemble(found map[string]finding) Report {
	r := Report{OK: true, Kernel: kernelRelease(), UID: os.Getuid()}
	for _, c := range catalog() {
		f, ok := found[c.Name]
		if !ok {
			f = finding{Status: Untried, Detail: "gave no answer"}
		}
		c.Status, c.Detail = f.Status, f.Detail
		if f.Fix != "" {
			c.Fix = f.Fix
		}
		if c.Level == Required && c.Status != OK {
			r.OK = false
		}
		r.Checks = append(r.Checks, c)
	}
	return r
}

// linkFinding returns the finding for the check "link": a sandbox with a network requires one of the link devices.
func linkFinding(found map[string]finding) finding {
	switch {
	case found["tap-vnet-header"].Status == OK:
		return okf("a TAP with virtio-net headers (--link tap)")
	case found["packet-link"].Status == OK:
		return okf("a veth pair and a packet socket (--link packet)")
	case found["tap-plain"].Status == OK:
		return okf("a plain TAP (--link tap-plain)")
	case found["tun-device"].Status == Untried && found["packet-link"].Status == Untried:
		return finding{Status: Untried, Detail: found["packet-link"].Detail, Fix: found["packet-link"].Fix}
	}
	return finding{Status: Missing, Detail: "neither a TAP nor a veth pair with a packet socket works",
		Fix: found["tun-device"].Fix}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// probe is a function that returns the findings of one or several checks, those in names.
type probe struct {
	names []string
	run   func() map[string]finding
}

// one returns the probe of a single check.
func one(name string, f func() finding) probe {
	return probe{[]string{name}, func() map[string]finding { return map[string]finding{name: f()} }}
}

// runAll runs the probes, each on its own goroutine, and returns the findings when all have answered or ctx ends. A probe that is
// still running then keeps its goroutine until the timeouts of its own system calls. before, if not nil, runs first on each
// goroutine; if it returns an error the probe's checks are untried.
func runAll(ctx context.Context, probes []probe, before func() error) map[string]finding {
	type answer struct {
		i int
		m map[string]finding
	}
	answers := make(chan answer, len(probes)) // with capacity for all answers, so that a late probe does not block for ever
	for i, p := range probes {
		go func() {
			if before != nil {
				if err := before(); err != nil {
					answers <- answer{i, same(p.names, finding{Status: Untried, Detail: err.Error()})}
					return
				}
			}
			answers <- answer{i, p.run()}
		}()
	}
	found := map[string]finding{}
	for _, p := range probes {
		for name, f := range same(p.names, finding{Status: Untried, Detail: "did not answer in time"}) {
			found[name] = f
		}
	}
	for range probes {
		select {
		case a := <-answers:
			for name, f := range a.m {
				found[name] = f
			}
		case <-ctx.Done():
			return found
		}
	}
	return found
}

// same returns the finding f for each of the checks.
func same(names []string, f finding) map[string]finding {
	m := map[string]finding{}
	for _, n := range names {
		m[n] = f
	}
	return m
}
