package pasta

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// PortSpec holds the rules of all options of one protocol and direction.
type PortSpec struct {
	Given bool // the option was given at least once
	Rules []PortRule
	// Ephemeral makes "auto" without ports include ephemeral ports.
	Ephemeral bool
}

// PortRule forwards a range of ports of one address.
type PortRule struct {
	Addr        netip.Addr // the zero value: every address of both families
	Interface   string     // "" for any
	First, Last uint16
	To          uint16 // port that First is forwarded to; the next ports are forwarded to the next ones
	// Weak means that the rule names no port by number: ports that cannot be bound are skipped without an error.
	Weak bool
	// Auto means that a port is open while a program listens on the port that it is forwarded to. A port that cannot be bound is
	// skipped.
	Auto bool
}

// Target returns the port that a port of the rule is forwarded to.
func (r PortRule) Target(port uint16) uint16 { return r.To + port - r.First }

// Auto reports whether a rule has "auto".
func (s *PortSpec) Auto() bool {
	return slices.ContainsFunc(s.Rules, func(r PortRule) bool { return r.Auto })
}

// portSet is a set of port numbers.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(first, last uint16) {
	for p := uint32(first); p <= uint32(last); p++ {
		s[p/64] |= 1 << (p % 64)
	}
}

func (s *portSet) has(p uint16) bool { return s[p/64]&(1<<(p%64)) != 0 }

// Add adds the value of one -t, -u, -T or -U. ephemeral is the range from which the kernel chooses ports; rules that name no port
// exclude it.
func (s *PortSpec) Add(value string, ephemeral [2]uint16) error {
	if value == "none" {
		if len(s.Rules) > 0 {
			return errors.New("none conflicts with previous options")
		}
		s.Given = true
		return nil
	}
	rules, err := parseList(value, ephemeral, s.Ephemeral)
	if err != nil {
		return err
	}
	for _, r := range rules {
		for _, have := range s.Rules {
			if r.Interface == have.Interface && r.Addr == have.Addr && r.First <= have.Last && have.First <= r.Last {
				return fmt.Errorf("Forwarding configuration conflict: port %d", max(r.First, have.First))
			}
		}
	}
	s.Given, s.Rules = true, append(s.Rules, rules...)
	return nil
}

// parseList parses every value but "none". followAll is PortSpec.Ephemeral.
func parseList(value string, ephemeral [2]uint16, followAll bool) ([]PortRule, error) {
	items := value
	var base PortRule
	if where, rest, ok := strings.Cut(value, "/"); ok {
		items = rest
		addr, ifname, hasIf := strings.Cut(where, "%")
		if hasIf {
			if ifname == "" || len(ifname) > maxIfName {
				return nil, fmt.Errorf("Invalid interface name: %q", ifname)
			}
			base.Interface = ifname
		}
		addr = strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")
		if addr != "" && addr != "*" {
			a, err := netip.ParseAddr(addr)
			if err != nil {
				return nil, fmt.Errorf("Bad forwarding address: %q", addr)
			}
			base.Addr = a.Unmap()
		} else if addr == "" && !hasIf {
			return nil, fmt.Errorf("Empty forwarding address in %q", value)
		}
	}
	excluded := new(portSet)
	var included []string
	all := false
	for item := range strings.SplitSeq(items, ",") {
		switch out, exclusion := strings.CutPrefix(item, "~"); {
		case exclusion:
			first, last, err := parseRange(out)
			if err != nil {
				return nil, err
			}
			excluded.add(first, last)
		case item == "auto":
			base.Auto = true
		case item == "all":
			all = true
		default:
			included = append(included, item)
		}
	}
	switch {
	case len(included) == 0 && base.Auto && followAll:
		return weak(base, excluded, [2]uint16{}), nil
	case len(included) == 0:
		return weak(base, excluded, ephemeral), nil
	case all:
		return nil, fmt.Errorf("Invalid port specifier '%s': all and ports by number", value)
	}
	var rules []PortRule
	for _, item := range included {
		r := base
		from, to, mapped := strings.Cut(item, ":")
		var err error
		if r.First, r.Last, err = parseRange(from); err != nil {
			return nil, err
		}
		r.To = r.First
		if mapped {
			first, last, err := parseRange(to)
			if err != nil {
				return nil, err
			}
			if last-first != r.Last-r.First {
				return nil, fmt.Errorf("Invalid port range %q: both sides need as many ports", item)
			}
			r.To = first
		}
		rules = append(rules, without(r, excluded)...)
	}
	return rules, nil
}

// maxIfName is the maximum length of an interface name: IFNAMSIZ less the final zero byte.
const maxIfName = 15

func parseRange(s string) (first, last uint16, err error) {
	from, to, ranged := strings.Cut(s, "-")
	if first, err = parsePort(from); err != nil {
		return 0, 0, fmt.Errorf("Invalid port specifier '%s'", s)
	}
	last = first
	if ranged {
		if last, err = parsePort(to); err != nil || last < first {
			return 0, 0, fmt.Errorf("Invalid port specifier '%s'", s)
		}
	}
	return first, last, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

// without splits a rule into rules for the ranges between the excluded ports.
func without(r PortRule, excluded *portSet) (rules []PortRule) {
	open := false
	for p := uint32(r.First); p <= uint32(r.Last); p++ {
		if excluded.has(uint16(p)) {
			open = false
			continue
		}
		if !open {
			piece := r
			piece.First, piece.To = uint16(p), r.To+uint16(p)-r.First
			rules = append(rules, piece)
			open = true
		}
		rules[len(rules)-1].Last = uint16(p)
	}
	return rules
}

// weak returns rules for every port except for the ephemeral and the excluded ones. An ephemeral range that begins with 0 is empty.
func weak(base PortRule, excluded *portSet, ephemeral [2]uint16) []PortRule {
	if ephemeral[0] != 0 {
		excluded.add(ephemeral[0], ephemeral[1])
	}
	base.First, base.Last, base.To, base.Weak = 1, 1<<16-1, 1, true
	return without(base, excluded)
}
