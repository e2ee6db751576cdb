package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"rootlessnet/api"
)

// TestGroupsOfCounters compares the groups with docs/counters.md, where a counter is no problem if its last column begins with "none".
func TestGroupsOfCounters(t *testing.T) {
	page, err := os.ReadFile("../../docs/counters.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z0-9_.-]+)`")
	documented := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		columns := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| `") || len(columns) < 2 {
			continue
		}
		problem := strings.TrimSpace(columns[len(columns)-1])
		for _, match := range name.FindAllStringSubmatch(columns[0], -1) {
			counter := match[1]
			documented[counter] = true
			g := groupOf(counter)
			switch {
			case strings.HasPrefix(counter, "policy."), strings.HasPrefix(counter, "drop.frame."): // no such column
				if g != groupExpected && g != groupAttention {
					t.Errorf("%s is in group %q", counter, groupTitles[g])
				}
			case strings.HasPrefix(problem, "none"):
				if g == groupAttention {
					t.Errorf("%s is in group %q, and docs/counters.md says that it is no problem", counter, groupTitles[g])
				}
			case g == groupExpected:
				t.Errorf("%s is in group %q, and docs/counters.md says: %s", counter, groupTitles[g], problem)
			case g == groupTraffic && counter != "dns.answers": // of which too few are a problem
				t.Errorf("%s is in group %q, and docs/counters.md says: %s", counter, groupTitles[g], problem)
			}
		}
	}
	for _, list := range [][]string{expected, attention} {
		for _, counter := range list {
			if !documented[counter] {
				t.Errorf("%s is not in docs/counters.md", counter)
			}
		}
	}
}

// TestZerosOfDropsAreNotShown, and what is no problem is not under the title of what may be one.
func TestZerosOfDropsAreNotShown(t *testing.T) {
	var b strings.Builder
	writeCounters(&b, api.Stats{Counters: map[string]uint64{"drop.frame.ip-options": 2, "dns.servfail": 0, "tcp.in": 0}})
	got := b.String()
	if strings.Contains(got, "worth a look") || strings.Contains(got, "dns.servfail") || !strings.Contains(got, "intended:\t\ndrop.frame.ip-options\t2\n") ||
		!strings.Contains(got, "tcp.in\t0\n") {
		t.Error(got)
	}
	b.Reset()
	writeCounters(&b, api.Stats{Counters: map[string]uint64{"dns.servfail": 1}})
	if !strings.Contains(b.String(), groupTitles[groupAttention]+":\t\ndns.servfail\t1\n") {
		t.Error(b.String())
	}
}
