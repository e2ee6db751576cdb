package main

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

// filters are the values of --filter by their keys.
type filters map[string][]string

// addFilter adds the flag --filter with docker's short form -f.
func addFilter(cmd *cobra.Command, into *[]string, keys ...string) {
	cmd.Flags().StringArrayVarP(into, "filter", "f", nil, "show only what matches `KEY=VALUE` (repeatable); keys: "+strings.Join(keys, ", "))
	var words []string
	for _, key := range keys {
		words = append(words, key+"=")
	}
	cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
}

// parseFilters reads filters, whose keys must be among those known.
func parseFilters(list, known []string) (filters, error) {
	f := filters{}
	for _, text := range list {
		key, value, ok := strings.Cut(text, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok {
			return nil, usageError{fmt.Errorf("invalid argument %q for \"-f, --filter\" flag: bad format of filter (expected name=value)", text)}
		}
		if !slices.Contains(known, key) {
			return nil, usageError{fmt.Errorf("invalid filter '%s'", key)}
		}
		f[key] = append(f[key], strings.TrimSpace(value))
	}
	return f, nil
}

// any reports whether no filter has the key, or one of those that have it matches.
func (f filters) any(key string, matches func(value string) bool) bool {
	values, ok := f[key]
	return !ok || slices.ContainsFunc(values, matches)
}

// labels reports whether the labels have all that the filters name.
func (f filters) labels(labels map[string]string) bool {
	for _, want := range f["label"] {
		key, value, hasValue := strings.Cut(want, "=")
		if got, ok := labels[key]; !ok || hasValue && got != value {
			return false
		}
	}
	return true
}

var psFilters = []string{"id", "name", "label", "status", "exited", "network", "publish", "expose", "before", "since"}

// psStates are the values of the filter "status". Docker's that no sandbox can have match nothing.
var psStates = []string{"created", "running", "lingering", "exited", "paused", "restarting", "removing", "dead"}

// checkPS checks the values of the filters of ps, and finds the times of before and since.
func (f filters) checkPS(boxes []api.Sandbox) (before, since time.Time, err error) {
	for _, s := range f["status"] {
		if !slices.Contains(psStates, s) {
			return before, since, usageError{fmt.Errorf("invalid filter 'status=%s'", s)}
		}
	}
	for _, s := range f["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return before, since, usageError{fmt.Errorf("invalid filter 'exited=%s'", s)}
		}
	}
	for _, s := range slices.Concat(f["publish"], f["expose"]) {
		if _, _, _, err := parsePortRange(s); err != nil {
			return before, since, usageError{err}
		}
	}
	created := func(key string) (t time.Time, err error) {
		for _, ref := range f[key] {
			i := slices.IndexFunc(boxes, func(b api.Sandbox) bool { return b.Name == ref || strings.HasPrefix(b.ID, ref) })
			if i < 0 {
				return t, fmt.Errorf("No such sandbox: %s", ref)
			}
			t = boxes[i].Created
		}
		return t, nil
	}
	if before, err = created("before"); err == nil {
		since, err = created("since")
	}
	return before, since, err
}

// ps filters the sandboxes.
func (f filters) ps(boxes []api.Sandbox) ([]api.Sandbox, error) {
	before, since, err := f.checkPS(boxes)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(boxes, func(b api.Sandbox) bool {
		keep := f.any("id", func(v string) bool { return strings.HasPrefix(b.ID, v) }) &&
			f.any("name", func(v string) bool { return nameMatches(b.Name, v) }) &&
			f.labels(b.Labels) &&
			f.any("status", func(v string) bool { return string(b.Status) == v }) &&
			f.any("exited", func(v string) bool { return b.ExitCode != nil && strconv.Itoa(*b.ExitCode) == v }) &&
			f.any("network", func(v string) bool { return networkMatches(b.Network, v) }) &&
			f.any("publish", func(v string) bool { return portMatches(b.Ports, v, func(p api.Port) uint16 { return p.HostPort }) }) &&
			f.any("expose", func(v string) bool { return portMatches(b.Ports, v, func(p api.Port) uint16 { return p.GuestPort }) }) &&
			(before.IsZero() || b.Created.Before(before)) && (since.IsZero() || b.Created.After(since))
		return !keep
	}), nil
}

// nameMatches is docker's: a regular expression that matches a part of the name, which may begin with a slash.
func nameMatches(name, pattern string) bool {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return strings.Contains(name, pattern)
	}
	return re.MatchString(name) || re.MatchString("/"+name)
}

func networkMatches(network, want string) bool {
	id, ok := strings.CutPrefix(network, "container:")
	return network == want || ok && (want == "container" || want == "container:"+state.ShortID(id))
}

// parsePortRange reads port[-end][/proto].
func parsePortRange(s string) (first, last int, proto string, err error) {
	ports, proto, ok := strings.Cut(s, "/")
	if !ok {
		proto = "tcp"
	}
	low, high, isRange := strings.Cut(ports, "-")
	if !isRange {
		high = low
	}
	first, err1 := strconv.Atoi(low)
	last, err2 := strconv.Atoi(high)
	if err1 != nil || err2 != nil || first < 1 || last > 65535 || last < first || proto != "tcp" && proto != "udp" {
		return 0, 0, "", fmt.Errorf("invalid port: %q", s)
	}
	return first, last, proto, nil
}

func portMatches(ports []api.Port, want string, number func(api.Port) uint16) bool {
	first, last, proto, err := parsePortRange(want)
	return err == nil && slices.ContainsFunc(ports, func(p api.Port) bool {
		n := int(number(p))
		return p.Proto == proto && first <= n && n <= last
	})
}

// labelsText is the labels in the form of docker ps: "a=1,b=2".
func labelsText(labels map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		words = append(words, key+"="+labels[key])
	}
	return strings.Join(words, ",")
}

// timeLayouts are the forms of times that docker's --since and --until take, besides durations and Unix times.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02", time.DateTime}

// parseTime reads the value of --since or --until: a time, a Unix time with a fraction, or how long ago. Empty is the zero time.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	seconds, fraction, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(seconds, 10, 64)
	nanos, err2 := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	if err != nil || err2 != nil || n < 0 || nanos < 0 {
		return time.Time{}, usageError{fmt.Errorf("invalid time: %q", s)}
	}
	return time.Unix(n, nanos), nil
}

// boundPort finds the sockets of a port of the guest, "80" or "80/udp".
func boundPort(ports []api.Port, text string) (found []netip.AddrPort, name string, err error) {
	first, last, proto, err := parsePortRange(text)
	if err != nil || first != last {
		return nil, "", usageError{fmt.Errorf("invalid port: %q", text)}
	}
	for _, p := range ports {
		if int(p.GuestPort) == first && p.Proto == proto {
			found = append(found, p.Host())
		}
	}
	return found, fmt.Sprintf("%d/%s", first, proto), nil
}
