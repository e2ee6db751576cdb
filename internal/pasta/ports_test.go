package pasta

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var ephemeral = [2]uint16{32768, 60999}

func TestPortGrammar(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		values []string
		rules  []PortRule
	}{
		{[]string{"none"}, nil},
		{[]string{"auto"}, []PortRule{{First: 1, Last: 32767, To: 1, Weak: true, Auto: true}, {First: 61000, Last: 65535, To: 61000, Weak: true, Auto: true}}},
		{[]string{"192.0.2.1/auto"}, []PortRule{{Addr: v4, First: 1, Last: 32767, To: 1, Weak: true, Auto: true}, {Addr: v4, First: 61000, Last: 65535, To: 61000, Weak: true, Auto: true}}},
		{[]string{"80-82:90-92,auto"}, []PortRule{{First: 80, Last: 82, To: 90, Auto: true}}},
		{[]string{"~1-32767,auto"}, []PortRule{{First: 61000, Last: 65535, To: 61000, Weak: true, Auto: true}}},
		{[]string{"none", "22"}, []PortRule{{First: 22, Last: 22, To: 22}}},
		{[]string{"22"}, []PortRule{{First: 22, Last: 22, To: 22}}},
		{[]string{"22:23"}, []PortRule{{First: 22, Last: 22, To: 23}}},
		{[]string{"22,25"}, []PortRule{{First: 22, Last: 22, To: 22}, {First: 25, Last: 25, To: 25}}},
		{[]string{"22-80:32-90"}, []PortRule{{First: 22, Last: 80, To: 32}}},
		{[]string{"192.0.2.1/5"}, []PortRule{{Addr: v4, First: 5, Last: 5, To: 5}}},
		{[]string{"[2001:db8::1]/5", "2001:db8::1/6"}, []PortRule{{Addr: v6, First: 5, Last: 5, To: 5}, {Addr: v6, First: 6, Last: 6, To: 6}}},
		{[]string{"%eth0/5"}, []PortRule{{Interface: "eth0", First: 5, Last: 5, To: 5}}},
		{[]string{"*%eth0/5"}, []PortRule{{Interface: "eth0", First: 5, Last: 5, To: 5}}},
		{[]string{"192.0.2.1%eth0/5:6"}, []PortRule{{Addr: v4, Interface: "eth0", First: 5, Last: 5, To: 6}}},
		{[]string{"5-25,~10-20"}, []PortRule{{First: 5, Last: 9, To: 5}, {First: 21, Last: 25, To: 21}}},
		{[]string{"5-25:105-125,~10-20"}, []PortRule{{First: 5, Last: 9, To: 105}, {First: 21, Last: 25, To: 121}}},
		{[]string{"~25"}, []PortRule{{First: 1, Last: 24, To: 1, Weak: true}, {First: 26, Last: 32767, To: 26, Weak: true}, {First: 61000, Last: 65535, To: 61000, Weak: true}}},
		{[]string{"all"}, []PortRule{{First: 1, Last: 32767, To: 1, Weak: true}, {First: 61000, Last: 65535, To: 61000, Weak: true}}},
		{[]string{"none", "none"}, nil},
	} {
		var s PortSpec
		for _, v := range c.values {
			if err := s.Add(v, ephemeral); err != nil {
				t.Errorf("%q: %v", c.values, err)
			}
		}
		if !s.Given || !slices.Equal(s.Rules, c.rules) {
			t.Errorf("%q: %+v, want %+v", c.values, s.Rules, c.rules)
		}
	}
}

// TestAutoEphemeral: "auto" includes ephemeral ports for -t only, and "all" never does.
func TestAutoEphemeral(t *testing.T) {
	s := PortSpec{Ephemeral: true}
	if err := s.Add("auto,~22", ephemeral); err != nil || len(s.Rules) != 2 || s.Rules[1] != (PortRule{First: 23, Last: 65535, To: 23, Weak: true, Auto: true}) {
		t.Errorf("%+v, %v", s.Rules, err)
	}
	s = PortSpec{Ephemeral: true}
	if err := s.Add("all", ephemeral); err != nil || len(s.Rules) != 2 || s.Rules[0].Last != 32767 {
		t.Errorf("%+v, %v", s.Rules, err)
	}
	o, err := Parse("pasta", nil, ephemeral)
	if err != nil || len(o.TCP.Rules) != 1 || len(o.UDP.Rules) != 2 || len(o.TCPNS.Rules) != 2 || len(o.UDPNS.Rules) != 2 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestPortMistakes(t *testing.T) {
	for _, line := range []string{
		"", "0", "65536", "x", "5-", "-5", "9-5", "5:", "5-7:5-9", "5:6:7", "1.2.3/5", "/5", "%/5", "1.2.3.4%/5", "~", "~x", "5,,6",
		"22 none", "auto none", "auto 22", "all auto", "auto auto", "all,22", "22 22", "20-30 25",
	} {
		var s PortSpec
		var err error
		for v := range strings.SplitSeq(line, " ") {
			if err = s.Add(v, ephemeral); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%q is accepted: %+v", line, s)
		}
	}
}

func FuzzPorts(f *testing.F) {
	for _, s := range []string{"22-80:32-90,~30", "192.0.2.1%eth0/5:6", "all"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		var s PortSpec
		if s.Add(value, ephemeral) != nil {
			return
		}
		for _, r := range s.Rules {
			if r.First == 0 || r.Last < r.First || r.To == 0 || int(r.To)+int(r.Last-r.First) > 65535 {
				t.Errorf("%q gives %+v", value, r)
			}
		}
	})
}
