package doctor

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Status is what came of a check.
type Status string

const (
	OK      Status = "ok"      // tried, works
	Missing Status = "missing" // the kernel or the system does not have it
	Denied  Status = "denied"  // there, but not for this user
	Untried Status = "untried" // what it stands on failed first, or it gave no answer in time
)

// Level says how much a check matters.
type Level string

const (
	Required Level = "required" // without it no sandbox starts
	Optional Level = "optional" // without it something named in Lost is lost
)

// Check is one line of the report.
type Check struct {
	Name   string `json:"name"`
	Group  string `json:"group"`
	Level  Level  `json:"level"`
	Status Status `json:"status"`
	Detail string `json:"detail"` // what was seen
	Lost   string `json:"lost"`   // what does not work without it
	Fix    string `json:"fix"`    // one command
}

// Report is the whole result, in the order of the catalog.
type Report struct {
	OK     bool    `json:"ok"` // every required check is ok
	Kernel string  `json:"kernel"`
	UID    int     `json:"uid"`
	Checks []Check `json:"checks"`
}

// Options of Run. The zero value is right for a program whose main calls ProbeMain.
type Options struct {
	// Timeout bounds the whole run; 0 means DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout of a run. Probes take tens of milliseconds; this is for a machine that is loaded or broken, and short
// enough that a person still waits for it.
const DefaultTimeout = 1800 * time.Millisecond

// finding is what a probe hands back. An empty Fix leaves that of the catalog.
type finding struct {
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

// Run tries everything and returns within Options.Timeout and a little. It fails never: what could not be tried is
// reported as such. It may be called as any user, and at the same time from several goroutines.
func Run(ctx context.Context, opts Options) Report {
	if IsProbe() {
		// main forgot ProbeMain: a probe that starts probes would have no end.
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
		found["pid-namespace"] = finding{Status: Untried, Detail: "no user namespace to try it in", Fix: user.Fix}
	}
	found["link"] = linkFinding(found)
	return assemble(found)
}

// assemble puts the findings into the order and the words of the catalog.
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

// linkFinding draws the conclusion for the one thing a sandbox with a network cannot do without: some link device.
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
	return finding{Status: Missing, Detail: "neither a TAP nor a veth pair with a packet socket can be had",
		Fix: found["tun-device"].Fix}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// probe is one named function of a set that runs together. It may answer for several checks.
type probe struct {
	names []string
	run   func() map[string]finding
}

// one makes a probe of a function that answers for a single check.
func one(name string, f func() finding) probe {
	return probe{[]string{name}, func() map[string]finding { return map[string]finding{name: f()} }}
}

// runAll runs the probes, each on its own goroutine, and collects what is there when all are done or ctx ends. A probe
// still running then keeps its goroutine until its own system calls' timeouts let it go. before, if not nil, runs on
// each goroutine first; its error makes the probe's checks untried.
func runAll(ctx context.Context, probes []probe, before func() error) map[string]finding {
	type answer struct {
		i int
		m map[string]finding
	}
	answers := make(chan answer, len(probes)) // room for all: a late probe must not hang for ever
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

func same(names []string, f finding) map[string]finding {
	m := map[string]finding{}
	for _, n := range names {
		m[n] = f
	}
	return m
}
