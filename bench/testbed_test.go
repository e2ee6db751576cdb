package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/skip"
	"rootlessnet/internal/nettest/topo"
)

// TestMain runs the subcommands that the bench starts this program with, such as clients and servers, in place of the tests.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == newUIDMap || name == newGIDMap {
		exit(name, mapIDs(name, os.Args[1:]))
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		exit(os.Args[1], subcommand(os.Args[1], os.Args[2:]))
	}
	if os.Getuid() != 0 {
		topo.Enter()
	}
	os.Exit(m.Run())
}

// TestEveryMetric measures every metric for a short time: without a helper, with docker0 and with rootless-run.
func TestEveryMetric(t *testing.T) {
	tb := startTestbed(t)
	f := finder{tb: tb}
	f.all()
	var helpers []*helper
	for _, h := range f.found {
		if h.kind != kindPeer {
			helpers = append(helpers, h)
		}
	}
	if len(helpers) == 0 {
		t.Fatal("the finder returned no helpers")
	}
	s := settings{mtus: []int{1500}, runs: 1, conns: 10, time: 60 * time.Millisecond, warm: 20 * time.Millisecond,
		only: regexp.MustCompile("")}
	for _, m := range metrics(s) {
		if !s.wants(m) {
			continue
		}
		rows := measureOne(tb, helpers, m, 1500, s)
		// The time is so short that another program may use the processor for all of it: try again.
		for try := 0; try < 2 && slices.ContainsFunc(rows, gaveNothing); try++ {
			rows = measureOne(tb, helpers, m, 1500, s)
		}
		for _, row := range rows {
			if gaveNothing(row) {
				t.Errorf("%s of %s: %s", row.Metric, row.Helper, row.Error)
			}
			if row.Metric == "pub-source" && row.Median != 1 {
				t.Errorf("%s: the server did not see the client's address", row.Helper)
			}
		}
	}
}

func gaveNothing(row Row) bool { return len(row.Values) == 0 && row.Skipped == "" }

// startTestbed returns a testbed with MTU 1500, until the end of the test. It skips the test as root.
func startTestbed(t *testing.T) *testbed {
	t.Helper()
	if os.Getuid() == 0 {
		skip.Missing(t, "needs an ordinary user: make test")
	}
	tb, err := newTestbed(1500, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tb.close)
	return tb
}

// TestFailureIsARow: a helper that fails gives rows with its error.
func TestFailureIsARow(t *testing.T) {
	tb := startTestbed(t)
	broken := &helper{name: "broken", kind: kindPeer, wrap: func([]string, int, int) []string {
		return []string{"/bin/sh", "-c", "echo no luck >&2; exit 3"}
	}}
	s := settings{runs: 2, time: 50 * time.Millisecond}
	rows := measureOne(tb, []*helper{broken}, metrics(s)[0], 1500, s)
	if len(rows) != len(bulkSeries) || rows[0].Failures != 2 || !strings.Contains(rows[0].Error, "no luck") {
		t.Errorf("%+v", rows)
	}
}
