package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"rootlessnet/internal/nettest/topo"
)

// TestMain lets the test program be what the bench starts as well: clients and servers.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == newUIDMap || name == newGIDMap {
		exit(name, mapIDs(name, os.Args[1:]))
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		exit(os.Args[1], part(os.Args[1], os.Args[2:]))
	}
	if os.Getuid() != 0 {
		topo.Enter()
	}
	os.Exit(m.Run())
}

// TestGround takes every metric for a moment: with no helper, docker0's way and rootless-run.
func TestGround(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: make test")
	}
	g, err := newGround(1500, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	f := finder{g: g}
	f.all()
	var helpers []*helper
	for _, h := range f.found {
		if h.kind != kindPeer {
			helpers = append(helpers, h)
		}
	}
	if len(helpers) == 0 {
		t.Fatal("not even no helper")
	}
	s := settings{mtus: []int{1500}, runs: 1, conns: 10, time: 60 * time.Millisecond, warm: 20 * time.Millisecond,
		only: regexp.MustCompile("")}
	for _, m := range metrics(s) {
		if !s.wants(m) {
			continue
		}
		rows := measureOne(g, helpers, m, 1500, s)
		// A moment is so short that another program's work may fill it.
		for try := 0; try < 2 && slices.ContainsFunc(rows, gaveNothing); try++ {
			rows = measureOne(g, helpers, m, 1500, s)
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

func TestFailureIsARow(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: make test")
	}
	g, err := newGround(1500, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	broken := &helper{name: "broken", kind: kindPeer, wrap: func([]string, int, int) []string {
		return []string{"/bin/sh", "-c", "echo no luck >&2; exit 3"}
	}}
	s := settings{runs: 2, time: 50 * time.Millisecond}
	rows := measureOne(g, []*helper{broken}, metrics(s)[0], 1500, s)
	if len(rows) != len(bulkSeries) || rows[0].Failures != 2 || !strings.Contains(rows[0].Error, "no luck") {
		t.Errorf("%+v", rows)
	}
}
