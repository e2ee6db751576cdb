package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"rootlessnet/api"
)

// group is what a counter is shown under.
type group int

const (
	groupNow       group = iota // gauges
	groupTraffic                // what was carried
	groupExpected               // what was answered, refused or dropped as it should be: no value is a problem
	groupAttention              // what is a problem if it grows, see docs/counters.md
)

var groupTitles = []string{
	groupNow:       "now",
	groupTraffic:   "carried",
	groupExpected:  "refused and dropped as intended",
	groupAttention: "worth a look if it grows (docs/counters.md)",
}

// expected are the counters of drops and errors of which docs/counters.md says that they are no problem, or that a few are normal.
// A test compares them with that page.
var expected = []string{
	"udp.icmp-errors", "frame.group-reports",
	"drop.udp.ttl", "drop.udp.too-big", "drop.udp.guest-error", "drop.udp.error-rate", "drop.udp.unknown-error", "drop.udp.closed",
	"drop.frame.other-mac", "drop.frame.ethertype", "drop.frame.ip-options", "drop.frame.destination", "drop.frame.protocol",
	"drop.frame.arp", "drop.frame.ndp", "drop.frame.dhcp", "drop.frame.icmp",
}

// attention are the counters that are a problem if they grow, besides those of drops.
var attention = []string{
	"link.rx_dropped", "link.tx_dropped",
	"tcp.dial-errors", "tcp.dial-limit", "tcp.dial-retries", "tcp.accept-errors", "tcp.reinject-failed", "tcp.unmatched", "tcp.retransmits", "tcp.syn-dropped", "tcp.syn-limited", "tcp.buffers-refused",
	"udp.evicted", "loopback.refused", "dns.servfail", "dns.upstream-errors", "dns.dropped",
}

// groupOf says what a counter is shown under. policy.* counts what is closed on purpose.
func groupOf(name string) group {
	switch {
	case strings.HasPrefix(name, "now."):
		return groupNow
	case slices.Contains(expected, name), strings.HasPrefix(name, "policy."):
		return groupExpected
	case slices.Contains(attention, name), strings.HasPrefix(name, "drop."):
		return groupAttention
	}
	return groupTraffic
}

// writeCounters prints the counters by groups; those of errors and drops only if they are not 0.
func writeCounters(w io.Writer, stats api.Stats) {
	fmt.Fprintln(w, "COUNTER\tVALUE")
	rx, tx := stats.NetIO()
	fmt.Fprintf(w, "net i/o\t%s / %s\n", humanSize(rx), humanSize(tx))
	all := counters(stats)
	names := slices.Sorted(maps.Keys(all))
	for g, title := range groupTitles {
		first := true
		for _, name := range names {
			if groupOf(name) != group(g) || group(g) >= groupExpected && all[name] == 0 {
				continue
			}
			if first {
				fmt.Fprintf(w, "\t\n%s:\t\n", title)
				first = false
			}
			fmt.Fprintf(w, "%s\t%d\n", name, all[name])
		}
	}
}
