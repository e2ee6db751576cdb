package dns

import (
	"errors"
	"net/netip"
	"slices"
	"sort"
	"testing"

	mdns "github.com/miekg/dns"
)

func testNames() map[string][]netip.Addr {
	gw4, gw6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")
	return map[string][]netip.Addr{
		"host.docker.internal":      {gw4, gw6},
		"Host.Containers.Internal.": {gw4},
		"db":                        {netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("::ffff:192.168.1.6")},
		"empty.example":             nil,
	}
}

func TestLocalNames(t *testing.T) {
	up := newUpstream(t, answersA("203.0.113.66"))
	r := start(t, Config{Names: testNames()}, up.addr)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  []string // empty: NODATA
	}{
		{"host.docker.internal", mdns.TypeA, []string{"10.0.2.2"}},
		{"host.docker.internal", mdns.TypeAAAA, []string{"fd00::2"}},
		{"HOST.Docker.internal", mdns.TypeA, []string{"10.0.2.2"}},
		{"host.docker.internal", mdns.TypeANY, []string{"10.0.2.2", "fd00::2"}},
		{"host.docker.internal", mdns.TypeMX, nil},
		{"host.docker.internal", mdns.TypeHTTPS, nil},
		{"host.docker.internal", mdns.TypePTR, nil},
		{"host.docker.internal", 65280, nil},
		{"host.containers.internal", mdns.TypeA, []string{"10.0.2.2"}},
		{"host.containers.internal", mdns.TypeAAAA, nil},
		{"db", mdns.TypeA, []string{"192.168.1.5", "192.168.1.6"}},
		{"empty.example", mdns.TypeA, nil},
		{"2.2.0.10.in-addr.arpa", mdns.TypePTR, []string{"host.containers.internal.", "host.docker.internal."}},
		{"2.2.0.10.in-addr.arpa", mdns.TypeTXT, nil},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", mdns.TypePTR, []string{"host.docker.internal."}},
		{"6.1.168.192.in-addr.arpa", mdns.TypePTR, []string{"db."}},
		{"localhost", mdns.TypeA, []string{"127.0.0.1"}},
		{"LOCALHOST", mdns.TypeAAAA, []string{"::1"}},
		{"app.localhost", mdns.TypeA, []string{"127.0.0.1"}},
		{"localhost", mdns.TypeTXT, nil},
		{"1.0.0.127.in-addr.arpa", mdns.TypePTR, []string{"localhost."}},
	} {
		m := question(c.name, c.qtype)
		a := askMsg(t, r, m)
		if a.Rcode != mdns.RcodeSuccess || !a.Authoritative || !a.RecursionAvailable || a.Question[0] != m.Question[0] {
			t.Errorf("%s %d: %v", c.name, c.qtype, a)
		}
		var got []string
		for _, rr := range a.Answer {
			switch rr := rr.(type) {
			case *mdns.A:
				got = append(got, rr.A.String())
			case *mdns.AAAA:
				got = append(got, rr.AAAA.String())
			case *mdns.PTR:
				got = append(got, rr.Ptr)
			}
			if rr.Header().Ttl != localTTL || rr.Header().Name != m.Question[0].Name {
				t.Errorf("%s %d: record %v", c.name, c.qtype, rr)
			}
		}
		sort.Strings(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %d: %v, want %v", c.name, c.qtype, got, c.want)
		}
		if nodata := len(a.Ns) == 1; nodata != (len(c.want) == 0) {
			t.Errorf("%s %d: authority %v with %d answers", c.name, c.qtype, a.Ns, len(got))
		}
	}
	if n := up.udp.Load() + up.tcp.Load(); n != 0 {
		t.Errorf("%d queries for local names were forwarded", n)
	}
	for _, name := range []string{"docker.internal", "x.host.docker.internal", "notlocalhost", "localhost.example", "1.0.0.10.in-addr.arpa"} {
		if a := askMsg(t, r, question(name, mdns.TypeA)); firstA(a) != "203.0.113.66" {
			t.Errorf("%s is not local and was not forwarded: %s", name, firstA(a))
		}
	}
}

func TestLocalNamesEDNS(t *testing.T) {
	r := start(t, Config{Names: testNames()})
	m := question("db", mdns.TypeA)
	m.SetEdns0(1400, true)
	if a := askMsg(t, r, m); a.IsEdns0() == nil || len(a.Answer) != 2 {
		t.Errorf("no EDNS in the answer: %v", a)
	}
	m.IsEdns0().SetVersion(1)
	if a := askMsg(t, r, m); a.Rcode != mdns.RcodeBadVers {
		t.Errorf("EDNS version 1: rcode %d, want BADVERS", a.Rcode)
	}
}

func TestSetNames(t *testing.T) {
	up := newUpstream(t, answersA("203.0.113.66"))
	r := start(t, Config{Names: testNames()}, up.addr)
	if err := r.SetNames(map[string][]netip.Addr{"web": {netip.MustParseAddr("10.0.2.7")}}); err != nil {
		t.Fatal(err)
	}
	if a := askMsg(t, r, question("web", mdns.TypeA)); firstA(a) != "10.0.2.7" {
		t.Errorf("new name: %s", firstA(a))
	}
	if a := askMsg(t, r, question("db", mdns.TypeA)); firstA(a) != "203.0.113.66" {
		t.Errorf("removed name: %s", firstA(a))
	}
}

func TestBadConfig(t *testing.T) {
	one := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for what, cfg := range map[string]Config{
		"empty name":      {Names: map[string][]netip.Addr{"": one}},
		"the root":        {Names: map[string][]netip.Addr{".": one}},
		"empty label":     {Names: map[string][]netip.Addr{"a..b": one}},
		"invalid address": {Names: map[string][]netip.Addr{"a": {{}}}},
		"no upstream":     {Upstreams: []netip.AddrPort{{}}},
	} {
		r, err := New(cfg)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: error %v, want *Error", what, err)
		}
		if r != nil {
			r.Close()
		}
	}
}

// A record set too large for UDP is returned over TCP, within the limit of a message.
func TestManyAddresses(t *testing.T) {
	names := map[string][]netip.Addr{}
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		names["all"] = append(names["all"], a)
		if i < 100 {
			names["some"] = append(names["some"], a)
		}
	}
	r := start(t, Config{Names: names})
	m := question("some", mdns.TypeA)
	if a := askMsg(t, r, m); !a.Truncated {
		t.Error("100 addresses in 512 bytes")
	}
	c, _ := connect(t, r)
	for name, want := range map[string]int{"some": 100, "all": 0} {
		m := question(name, mdns.TypeA)
		writeMessage(c, pack(m))
		raw, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		if a := unpack(t, m, raw); len(a.Answer) != want {
			t.Errorf("%s over TCP: %d addresses, want %d", name, len(a.Answer), want)
		}
	}
}
