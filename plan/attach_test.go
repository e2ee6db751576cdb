package plan

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestResolveAttachContradictions(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	plan := func(change func(*NetworkPlan)) Config {
		p := &NetworkPlan{Addrs: []netip.Prefix{prefix("10.0.2.100/24")}, Gateway: addr("10.0.2.2")}
		change(p)
		return Config{Plan: p}
	}
	for _, c := range []struct {
		field, text string
		target      Target
		config      Config
	}{
		{"Target", "one of them", Target{}, Config{}},
		{"Target", "one of them", Target{PID: 1, NetNS: "/run/netns/x"}, Config{}},
		{"Target", "invalid process: -1", Target{PID: -1}, Config{}},
		{"Target", "a TAP is not configured", Target{TAP: os.Stdin}, Config{Configure: true}},
		{"Network", "network mode and attaching", Target{PID: 1}, Config{Network: NetworkHost}},
		{"IfName", `invalid interface name: "a/b"`, Target{PID: 1}, Config{IfName: "a/b"}},
		{"OutboundAddr", "invalid IPv4 address", Target{PID: 1}, Config{OutboundAddr: addr("::1")}},
		{"Plan", "addresses beside it", Target{PID: 1}, Config{Plan: &NetworkPlan{}, IP: addr("10.0.2.9")}},
		{"Plan", "a gateway needs an address", Target{PID: 1}, Config{Plan: &NetworkPlan{}}},
		{"Plan", "a gateway needs an address", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Gateway6 = addr("fd00::2") })},
		{"Plan", "is the gateway's", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Gateway = addr("10.0.2.100") })},
		{"Plan", "invalid IPv4 gateway", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Gateway = addr("fd00::2") })},
		{"Plan", "is there twice", Target{PID: 1}, plan(func(p *NetworkPlan) {
			p.Special = []SpecialAddr{{Addr: addr("10.0.2.3")}, {Addr: addr("10.0.2.3"), DNS: true}}
		})},
		{"Plan", "no address of the host", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Special = []SpecialAddr{{Addr: addr("10.0.2.3"), To: ToHost}} })},
		{"Plan", "invalid target", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Special = []SpecialAddr{{Addr: addr("10.0.2.3"), To: "moon"}} })},
		{"Plan", "invalid route", Target{PID: 1}, plan(func(p *NetworkPlan) { p.Routes = []Route{{Dst: prefix("::/0"), Gateway: addr("10.0.2.2")}} })},
	} {
		_, err := ResolveAttach(&c.config, &c.target, noHost{})
		var wrong *UsageError
		if !errors.As(err, &wrong) || wrong.Field != c.field || !strings.Contains(wrong.Error(), c.text) {
			t.Errorf("%+v %+v: %v, want %s: %s", c.target, c.config, err, c.field, c.text)
		}
	}
}
