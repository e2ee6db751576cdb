package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestChooseByName(t *testing.T) {
	var all []*helper
	for _, name := range []string{"none", "rootless-run", "rootless-run/stack", "pasta-2023", "pasta-2024", "rootlesskit-3:a:b"} {
		all = append(all, &helper{name: name})
	}
	for names, want := range map[string][]string{
		"none,rootless-run":        {"none", "rootless-run"},
		"pasta":                    {"pasta-2023", "pasta-2024"},
		"pasta-2024,pasta":         {"pasta-2024", "pasta-2023"},
		"rootlesskit-3:a":          {"rootlesskit-3:a:b"},
		"rootless-run/stack":       {"rootless-run/stack"},
		"rootlesskit,rootless-run": {"rootlesskit-3:a:b", "rootless-run"},
	} {
		got, err := choose(all, names)
		if err != nil || !slices.Equal(namesOf(got), want) {
			t.Errorf("choose(%q) = %v, %v; want %v", names, namesOf(got), err, want)
		}
	}
	if got, err := choose(all, "none,past"); err == nil {
		t.Errorf("the beginning of a word chose %v", namesOf(got))
	}
	if got, _ := choose(all, "all"); len(got) != len(all) {
		t.Errorf("all are %v", namesOf(got))
	}
}

func TestVersions(t *testing.T) {
	for line, want := range map[string]string{
		"rootlesskit version 3.0.1": "3.0.1",
		"slirp4netns version 1.2.0": "1.2.0",
		"pasta 2024_12_11.09478d5":  "2024_12_11",
		"pasta unknown version":     "",
	} {
		if got := versionIn(line); got != want {
			t.Errorf("versionIn(%q) = %q, want %q", line, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0.5: 50, 0.99: 99, 1: 100, 0: 1} {
		if got := quantile(d, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := quantile(d[:1], 0.99); got != 1 {
		t.Errorf("of one: %d", got)
	}
}

func TestRateCountsTheWindowOnly(t *testing.T) {
	l := Load{Warm: 30 * time.Millisecond, Time: 100 * time.Millisecond}
	var calls int
	s, err := rate(l, []func() error{func() error {
		calls++
		time.Sleep(time.Millisecond)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Ops == 0 || int(s.Ops) >= calls || s.Ops > 101 || s.P50 < 1000 || s.P99 < s.P50 {
		t.Errorf("%d calls of 1 ms: %+v", calls, s)
	}
	boom := errors.New("boom")
	if _, err := rate(l, []func() error{func() error { time.Sleep(time.Millisecond); return boom }}); !errors.Is(err, boom) {
		t.Errorf("all failed: %v", err)
	}
}

func TestWatchTakesTheWindow(t *testing.T) {
	var b bytes.Buffer
	for i, count := range []uint64{10, 20, 50, 90, 95} {
		if err := binary.Write(&b, binary.BigEndian, record{When: int64(i+1) * 100, Count: count}); err != nil {
			t.Fatal(err)
		}
	}
	base, last, final, err := watch(&b, time.Unix(0, 150), time.Unix(0, 420), time.Unix(0, 450))
	if err != nil || base.Count != 20 || last.Count != 90 || final.Count != 95 {
		t.Errorf("%v %v %v %v", base, last, final, err)
	}
	if _, _, _, err := watch(&b, time.Unix(0, 1), time.Unix(0, 2), time.Unix(0, 3)); err == nil {
		t.Error("watch returned no error without records")
	}
}

func TestHostOfUnmaps(t *testing.T) {
	for addr, want := range map[string]string{"[::ffff:192.0.2.1]:80": "192.0.2.1", "192.0.2.1:9": "192.0.2.1", "[::1]:1": "::1", "x": ""} {
		if got := hostOf(addr); got != want {
			t.Errorf("hostOf(%q) = %q, want %q", addr, got, want)
		}
	}
}
