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
		exit(os.Args[1], part(os.Args[1], os.Args[2:]))
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

// fewHelpers is how many fit in one long table; of more, `bench render` makes something better to read.
const fewHelpers = 3

// exit ends the program: with 0 when err is nil.
func exit(name string, err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, strings.TrimSpace("bench "+name)+":", err)
	os.Exit(1)
}

// part runs one end of a measurement, or another small piece; the bench starts itself as such.
func part(name string, args []string) error {
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
	flag.StringVar(&s.helpers, "helpers", "none,rootless-run", "what to measure, such as \"none,rootless-run,pasta\"; \"all\" that are found")
	flags := flag.String("flags", "", "further flags of rootless-run, such as \"--link packet\"")
	only := flag.String("only", "", "measure only what matches this regular expression")
	mtus := flag.String("mtu", "65520,1500", "MTUs of the sandbox; the first one for what is measured at one only")
	flag.IntVar(&s.lanMTU, "lan-mtu", 1500, "MTU of the link outside")
	flag.IntVar(&s.runs, "runs", 3, "how often each is taken")
	flag.IntVar(&s.conns, "conns", 10000, "idle connections to hold")
	flag.DurationVar(&s.time, "time", 3*time.Second, "of one measurement of a rate")
	flag.DurationVar(&s.warm, "warm", 150*time.Millisecond, "before each of them")
	congestion := flag.String("congestion", "", "congestion control of all TCP but within helpers; the machine's default when it is empty")
	flag.IntVar(&s.tcpMem, "tcp-rmem", 0, "greatest receive buffer of TCP outside of helpers, in bytes; the machine's when it is 0")
	flag.BoolVar(&s.quick, "quick", false, "one short run, at the first MTU, of what matters most")
	flag.BoolVar(&s.every, "every", false, "measure everything also of helpers that only differ in how they publish ports")
	flag.BoolVar(&s.lenient, "lenient", false, "exit with 0 although a measurement failed")
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

// quickTime is that of one measurement of a quick run.
const quickTime = 400 * time.Millisecond

func usage(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(2)
}

func measureAll(s settings) (*Report, error) {
	g, err := newGround(s.lanMTU, s.tcpMem)
	if err != nil {
		return nil, err
	}
	defer g.close()
	f := finder{g: g, flags: s.flags}
	f.all()
	helpers, err := choose(f.found, s.helpers)
	if err != nil {
		return nil, err
	}
	report := &Report{CPUs: runtime.NumCPU(), LanMTU: s.lanMTU, Seconds: s.time.Seconds(), Runs: s.runs, TCP: g.tcp}
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
			report.Rows = append(report.Rows, measureOne(g, helpers, m, mtu, s)...)
		}
	}
	report.compare()
	report.Targets = targets(report)
	return report, nil
}

func (s settings) wants(m metric) bool {
	if m.onlyName && !s.asked || m.slow && s.quick && !s.asked {
		return false
	}
	for _, one := range m.series {
		if s.only.MatchString(m.name + one.suffix) {
			return true
		}
	}
	return false
}

// measureOne takes one metric of every helper in turn, s.runs times.
func measureOne(g *ground, helpers []*helper, m metric, mtu int, s settings) []Row {
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
			values, err := m.take(g, h, mtu, s)
			for j := range rows[i] {
				row := &rows[i][j]
				switch {
				case errors.Is(err, errNotHere):
					row.Skipped = err.Error()
				case err != nil:
					row.Failures++
					row.Error = err.Error()
				case math.IsNaN(values[j]):
					row.Skipped = "too little was moved to tell"
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
