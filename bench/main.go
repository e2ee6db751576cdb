package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"rootlessnet/internal/nettest/topo"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := part(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	topo.Enter()
	report, err := measureAll(parseFlags())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	report.table(os.Stderr)
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if report.failed() {
		os.Exit(1)
	}
}

// part runs one end of a measurement; the bench starts itself as such.
func part(name string, args []string) error {
	switch {
	case name == "serve" && len(args) == 1:
		return serve(args[0])
	case name == "client" && len(args) == 3:
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		return client(args[0], args[1], d)
	case name == "hold" && len(args) == 2:
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return hold(args[0], n)
	}
	return errors.New("usage: serve ADDR | client KIND ADDR DURATION | hold ADDR COUNT")
}

type settings struct {
	helpers string
	flags   []string
	only    *regexp.Regexp
	mtus    []int
	lanMTU  int
	runs    int
	conns   int
	time    time.Duration
}

func parseFlags() settings {
	var s settings
	flag.StringVar(&s.helpers, "helpers", "none,rootless-run", "what to measure, of none, rootless-run, pasta")
	flags := flag.String("flags", "", "further flags of rootless-run, such as \"--link packet\"")
	only := flag.String("only", "", "measure only what matches this regular expression")
	mtus := flag.String("mtu", "65520,1500", "MTUs of the sandbox; the first one for what is measured at one only")
	flag.IntVar(&s.lanMTU, "lan-mtu", 1500, "MTU of the link outside")
	flag.IntVar(&s.runs, "runs", 3, "how often each is taken")
	flag.IntVar(&s.conns, "conns", 10000, "idle connections to hold")
	flag.DurationVar(&s.time, "time", 3*time.Second, "of one measurement of a rate")
	flag.Parse()
	s.flags = strings.Fields(*flags)
	var err error
	if s.only, err = regexp.Compile(*only); err != nil {
		usage(err)
	}
	for _, text := range strings.Split(*mtus, ",") {
		mtu, err := strconv.Atoi(text)
		if err != nil {
			usage(err)
		}
		s.mtus = append(s.mtus, mtu)
	}
	return s
}

func usage(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(2)
}

func measureAll(s settings) (*Report, error) {
	helpers, err := findHelpers(s.helpers, s.flags)
	if err != nil {
		return nil, err
	}
	g, err := newGround(s.lanMTU, s.time)
	if err != nil {
		return nil, err
	}
	defer g.close()
	report := &Report{CPUs: runtime.NumCPU(), LanMTU: s.lanMTU, Seconds: s.time.Seconds()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		report.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	for _, h := range helpers {
		if r, ok := h.(run); ok {
			out, err := g.output(g.Here, []string{r.path, "--version"}, runPatience)
			if err != nil {
				return nil, err
			}
			report.Version = strings.TrimSpace(string(out))
		}
	}
	for _, m := range metrics(s.conns) {
		if !s.only.MatchString(m.name) {
			continue
		}
		mtus := s.mtus
		if !m.perMTU {
			mtus = mtus[:1]
		}
		for _, mtu := range mtus {
			report.Rows = append(report.Rows, measureOne(g, helpers, m, mtu, s.runs)...)
		}
	}
	report.compare()
	return report, nil
}

// measureOne takes one metric of every helper in turn, runs times.
func measureOne(g *ground, helpers []Helper, m metric, mtu, runs int) []Row {
	rows := make([]Row, len(helpers))
	for range runs {
		for i, h := range helpers {
			row := &rows[i]
			*row = Row{Metric: m.name, Unit: m.unit, MTU: mtu, Helper: h.Name(),
				Values: row.Values, Error: row.Error, Skipped: row.Skipped}
			if row.Error != "" || row.Skipped != "" {
				continue
			}
			v, err := m.take(g, h, mtu)
			switch {
			case errors.Is(err, errNotHere):
				row.Skipped = err.Error()
			case err != nil:
				row.Error = err.Error()
			default:
				row.Values = append(row.Values, v)
			}
		}
	}
	for i := range rows {
		rows[i].Summary = summarise(rows[i].Values)
		fmt.Fprintf(os.Stderr, "%-16s %6d %-14s %s %s %s%s\n", m.name, mtu, rows[i].Helper,
			figure(rows[i].Median), m.unit, rows[i].Error, rows[i].Skipped)
	}
	return rows
}
