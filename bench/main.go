package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"rootlessnet/internal/nettest/topo"

	"golang.org/x/sys/unix"
)

func main() {
	if name := filepath.Base(os.Args[0]); name == newUIDMap || name == newGIDMap {
		exit(name, mapIDs(name, os.Args[1:]))
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		exit(os.Args[1], subcommand(os.Args[1], os.Args[2:]))
	}
	topo.Enter()
	s := parseFlags()
	report, err := measureAll(s)
	if err != nil {
		exit("", err)
	}
	if len(report.Helpers) <= fewHelpers {
		report.table(os.Stderr)
	}
	report.writeTargets(os.Stderr, false)
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(report); err != nil {
		exit("", err)
	}
	if report.failed() && !s.lenient {
		os.Exit(1)
	}
}

// fewHelpers is the maximum number of helpers for one long table. For more, `bench render` makes better ones.
const fewHelpers = 3

// exit ends the program, with 0 if err is nil.
func exit(name string, err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, strings.TrimSpace("bench "+name)+":", err)
	os.Exit(1)
}

// subcommand runs a subcommand. The bench starts itself as client and server of the measurements.
func subcommand(name string, args []string) error {
	switch {
	case name == "serve" && len(args) == 2:
		port, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return serve(port, count)
	case name == "serve-http" && len(args) == 1:
		port, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return serveHTTP(port)
	case name == "client" && len(args) == 1:
		return client(args[0])
	case name == "await" && len(args) > 0:
		return await(args)
	case name == "slirp" && len(args) > 3:
		code, err := runSlirp(args[0], args[1], args[2], args[3:])
		if err == nil {
			os.Exit(code)
		}
		return err
	case name == "render" && len(args) == 2:
		return render(args[0], args[1])
	case name == "readme" && len(args) == 2:
		return renderReadme(args[0], args[1])
	}
	return errors.New("usage: serve PORT COUNT | serve-http PORT | client LOAD | slirp PATH MTU PORT COMMAND… | render JSON DIR | readme JSON FILE")
}

type settings struct {
	helpers string
	flags   []string
	only    *regexp.Regexp
	asked   bool // -only was given
	mtus    []int
	lanMTU  int
	tcpMem  int
	runs    int
	conns   int
	time    time.Duration
	warm    time.Duration
	quick   bool
	every   bool
	lenient bool
}

func parseFlags() settings {
	var s settings
	flag.StringVar(&s.helpers, "helpers", "none,rootless-run", "helpers to measure, such as \"none,rootless-run,pasta\", or \"all\"")
	flags := flag.String("flags", "", "additional flags of rootless-run, such as \"--link packet\"")
	only := flag.String("only", "", "measure only metrics that match this regular expression")
	mtus := flag.String("mtu", "65520,1500", "MTUs of the sandbox; metrics that are not measured at every MTU use the first one")
	flag.IntVar(&s.lanMTU, "lan-mtu", 1500, "MTU of the link between the namespaces")
	flag.IntVar(&s.runs, "runs", 3, "how often each measurement is repeated")
	flag.IntVar(&s.conns, "conns", 10000, "number of idle connections for the metric memory")
	flag.DurationVar(&s.time, "time", 3*time.Second, "time of one measurement of a rate")
	flag.DurationVar(&s.warm, "warm", 150*time.Millisecond, "warm-up time before each of them")
	congestion := flag.String("congestion", "", "congestion control of TCP, except within helpers; empty for the machine's default")
	flag.IntVar(&s.tcpMem, "tcp-rmem", 0, "maximum receive buffer of TCP, except within helpers, in bytes; 0 for the machine's")
	flag.BoolVar(&s.quick, "quick", false, "run the most important measurements once, for a short time, at the first MTU")
	flag.BoolVar(&s.every, "every", false, "take all measurements also of helpers that differ only in how they publish ports")
	flag.BoolVar(&s.lenient, "lenient", false, "exit with 0 even if a measurement failed")
	flag.Parse()
	s.flags = strings.Fields(*flags)
	if *congestion != "" {
		os.Setenv(congestionEnv, *congestion)
	}
	s.asked = *only != ""
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
	if s.quick {
		s.runs, s.time, s.mtus = 1, quickTime, s.mtus[:1]
	}
	return s
}

// quickTime is the time of one measurement with -quick.
const quickTime = 400 * time.Millisecond

func usage(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(2)
}

func measureAll(s settings) (*Report, error) {
	tb, err := newTestbed(s.lanMTU, s.tcpMem)
	if err != nil {
		return nil, err
	}
	defer tb.close()
	f := finder{tb: tb, flags: s.flags}
	f.all()
	helpers, err := choose(f.found, s.helpers)
	if err != nil {
		return nil, err
	}
	report := &Report{CPUs: runtime.NumCPU(), LanMTU: s.lanMTU, Seconds: s.time.Seconds(), Runs: s.runs, TCP: tb.tcp}
	if s.helpers == "all" {
		report.Missing = f.missing
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		report.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	for _, h := range helpers {
		report.Helpers = append(report.Helpers, HelperInfo{Name: h.name, Kind: h.kind, Version: h.version})
		if h.kind == kindOurs {
			report.Version = h.version
		}
	}
	for _, m := range metrics(s) {
		if !s.wants(m) {
			continue
		}
		mtus := s.mtus
		if !m.perMTU {
			mtus = mtus[:1]
		}
		for _, mtu := range mtus {
			report.Rows = append(report.Rows, measureOne(tb, helpers, m, mtu, s)...)
		}
	}
	report.compare()
	report.Targets = targets(report)
	return report, nil
}

func (s settings) wants(m metric) bool {
	if m.onlyByName && !s.asked || m.slow && s.quick && !s.asked {
		return false
	}
	for _, one := range m.series {
		if s.only.MatchString(m.name + one.suffix) {
			return true
		}
	}
	return false
}

// measureOne measures one metric s.runs times, each time with every helper.
func measureOne(tb *testbed, helpers []*helper, m metric, mtu int, s settings) []Row {
	rows := make([][]Row, len(helpers))
	for i, h := range helpers {
		for _, one := range m.series {
			rows[i] = append(rows[i], Row{Metric: m.name + one.suffix, Unit: one.unit, LowWins: one.lowWins, MTU: mtu, Helper: h.name})
		}
	}
	for range s.runs {
		for i, h := range helpers {
			if h.portsOnly && !m.ports && !s.every {
				rows[i] = nil
				continue
			}
			values, err := m.take(tb, h, mtu, s)
			for j := range rows[i] {
				row := &rows[i][j]
				switch {
				case errors.Is(err, errNotHere):
					row.Skipped = err.Error()
				case err != nil:
					row.Failures++
					row.Error = err.Error()
				case math.IsNaN(values[j]):
					row.Skipped = "too few bytes were moved to measure it"
				default:
					row.Values = append(row.Values, values[j])
				}
			}
		}
	}
	var all []Row
	for _, some := range rows {
		for i := range some {
			row := &some[i]
			row.Summary = summarise(row.Values)
			if len(row.Values) > 0 {
				row.Skipped = ""
			}
			fmt.Fprintf(os.Stderr, "%-20s %6d %-32s %8s %s %s%s\n", row.Metric, mtu, row.Helper,
				figure(row.Median), row.Unit, row.Error, row.Skipped)
		}
		all = append(all, some...)
	}
	return all
}
