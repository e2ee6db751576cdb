package plan

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

type fakeHost struct {
	list []netip.Prefix
	err  error
}

func (h fakeHost) Prefixes() ([]netip.Prefix, error) { return h.list, h.err }

func host(prefixes ...string) fakeHost {
	var h fakeHost
	for _, p := range prefixes {
		h.list = append(h.list, netip.MustParsePrefix(p))
	}
	return h
}

func TestZeroConfigIsTheDefault(t *testing.T) {
	p, err := Resolve(&Config{Argv: []string{"true"}}, host("0.0.0.0/0", "::/0", "127.0.0.0/8", "192.0.2.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Network != NetworkBridge || p.MTU != 65520 || p.UserNS != UserNSKeepID || p.Link != LinkAuto {
		t.Errorf("network %q mtu %d userns %q link %q", p.Network, p.MTU, p.UserNS, p.Link)
	}
	for _, c := range []struct{ name, got, want string }{
		{"subnet", p.Addrs.Subnet.String(), "10.0.2.0/24"},
		{"gateway", p.Addrs.Gateway.String(), "10.0.2.2"},
		{"guest", p.Addrs.Guest.String(), "10.0.2.100"},
		{"subnet6", p.Addrs.Subnet6.String(), "fd52:6e65:7400::/64"},
		{"gateway6", p.Addrs.Gateway6.String(), "fd52:6e65:7400::2"},
		{"guest6", p.Addrs.Guest6.String(), "fd52:6e65:7400::100"},
		{"mac", p.MAC.String(), "02:42:0a:00:02:64"},
		{"gatewayMAC", p.GatewayMAC.String(), "02:42:0a:00:02:02"},
	} {
		if c.got != c.want {
			t.Errorf("%s = %s, want %s", c.name, c.got, c.want)
		}
	}
	if len(p.Warnings) != 0 {
		t.Errorf("warnings %q", p.Warnings)
	}
}

func TestSubnetChoice(t *testing.T) {
	ip := netip.MustParseAddr
	for _, c := range []struct {
		name   string
		host   fakeHost
		config Config
		subnet string
		guest  string
		warned bool
	}{
		{name: "one taken", host: host("10.0.2.0/24"), subnet: "10.0.3.0/24", guest: "10.0.3.100"},
		{name: "a host inside", host: host("10.0.2.7/32"), subnet: "10.0.3.0/24", guest: "10.0.3.100"},
		{name: "a wider network", host: host("10.0.0.0/16"), subnet: "172.31.0.0/24", guest: "172.31.0.100"},
		{name: "two ranges", host: host("10.0.0.0/8", "172.16.0.0/12"), subnet: "192.168.0.0/24", guest: "192.168.0.100"},
		{name: "default routes in halves", host: host("0.0.0.0/1", "128.0.0.0/1"), subnet: "10.0.2.0/24", guest: "10.0.2.100"},
		{name: "everything taken", host: host("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
			subnet: "10.0.2.0/24", guest: "10.0.2.100", warned: true},
		{name: "routes unknown", host: fakeHost{err: errors.New("denied")}, subnet: "10.0.2.0/24", guest: "10.0.2.100", warned: true},
		{name: "address in the subnet", config: Config{IP: ip("10.0.2.9")}, subnet: "10.0.2.0/24", guest: "10.0.2.9"},
		{name: "address in the next subnet", host: host("10.0.2.0/24"), config: Config{IP: ip("10.0.3.9")}, subnet: "10.0.3.0/24", guest: "10.0.3.9"},
		{name: "subnet given", config: Config{Subnet: netip.MustParsePrefix("100.64.0.0/10")}, subnet: "100.64.0.0/10", guest: "100.64.0.100"},
		{name: "subnet given, in use", host: host("100.64.0.0/10"), config: Config{Subnet: netip.MustParsePrefix("100.64.0.0/10")},
			subnet: "100.64.0.0/10", guest: "100.64.0.100", warned: true},
		{name: "small subnet", config: Config{Subnet: netip.MustParsePrefix("10.9.9.0/28")}, subnet: "10.9.9.0/28", guest: "10.9.9.14"},
		{name: "smallest subnet", config: Config{Subnet: netip.MustParsePrefix("10.9.9.4/30")}, subnet: "10.9.9.4/30", guest: "10.9.9.5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Argv = []string{"true"}
			p, err := Resolve(&c.config, c.host)
			if err != nil {
				t.Fatal(err)
			}
			if p.Addrs.Subnet.String() != c.subnet || p.Addrs.Guest.String() != c.guest {
				t.Errorf("subnet %s guest %s, want %s %s", p.Addrs.Subnet, p.Addrs.Guest, c.subnet, c.guest)
			}
			if p.Addrs.Guest == p.Addrs.Gateway {
				t.Errorf("guest and gateway are both %s", p.Addrs.Guest)
			}
			if (len(p.Warnings) > 0) != c.warned {
				t.Errorf("warnings %q", p.Warnings)
			}
		})
	}
}

// TestAddressOutsideTheSubnet: an address alone does not choose another network.
func TestAddressOutsideTheSubnet(t *testing.T) {
	for _, c := range []struct {
		host   fakeHost
		config Config
		want   string
	}{
		{host(), Config{IP: netip.MustParseAddr("10.0.7.9")}, "no configured subnet contains IP address 10.0.7.9 (the subnet is 10.0.2.0/24 unless another is given)"},
		{host("10.0.2.0/24"), Config{IP: netip.MustParseAddr("10.0.2.9")}, "no configured subnet contains IP address 10.0.2.9 (the subnet is 10.0.3.0/24 unless another is given)"},
		{host(), Config{IP6: netip.MustParseAddr("fd52:6e65:7400:1::9")},
			"no configured subnet contains IP address fd52:6e65:7400:1::9 (the subnet is fd52:6e65:7400::/64 unless another is given)"},
		{host(), Config{IP: netip.MustParseAddr("10.0.7.9"), Subnet: netip.MustParsePrefix("10.0.8.0/24")}, "no configured subnet contains IP address 10.0.7.9"},
	} {
		c.config.Argv = []string{"true"}
		var usage *UsageError
		if _, err := Resolve(&c.config, c.host); !errors.As(err, &usage) || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
	}
	// Which subnet is free is not known without the host's routes.
	if err := (&Config{Argv: []string{"true"}, IP: netip.MustParseAddr("10.0.3.9")}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestSubnetChoice6(t *testing.T) {
	c := Config{Argv: []string{"true"}}
	p, err := Resolve(&c, host("fd52:6e65:7400::/64"))
	if err != nil || p.Addrs.Guest6.String() != "fd52:6e65:7400:1::100" {
		t.Errorf("guest6 %v, %v", p.Addrs.Guest6, err)
	}
	c.Subnet6 = netip.MustParsePrefix("fd00::/126")
	p, err = Resolve(&c, host())
	if err != nil || p.Addrs.Guest6.String() != "fd00::3" || p.Addrs.Gateway6.String() != "fd00::2" {
		t.Errorf("guest6 %v gateway6 %v, %v", p.Addrs.Guest6, p.Addrs.Gateway6, err)
	}
	c = Config{Argv: []string{"true"}, DisableIPv6: true}
	if p, err = Resolve(&c, host()); err != nil || p.Addrs.Subnet6.IsValid() || len(p.Warnings) > 0 {
		t.Errorf("disabled: %v %q %v", p.Addrs.Subnet6, p.Warnings, err)
	}
	c = Config{Argv: []string{"true"}, MTU: 1000}
	if p, err = Resolve(&c, host()); err != nil || p.Addrs.Subnet6.IsValid() || len(p.Warnings) != 1 {
		t.Errorf("small MTU: %v %q %v", p.Addrs.Subnet6, p.Warnings, err)
	}
}

func TestMACOfTheGateway(t *testing.T) {
	c := Config{Argv: []string{"true"}, MAC: net.HardwareAddr{2, 0x42, 10, 0, 2, 2}}
	p, err := Resolve(&c, host())
	if err != nil || p.MAC.String() == p.GatewayMAC.String() {
		t.Errorf("guest %s gateway %s, %v", p.MAC, p.GatewayMAC, err)
	}
}

func TestUsageErrors(t *testing.T) {
	mac, _ := net.ParseMAC("92:d0:c6:0a:29:33")
	ip, ip6 := netip.MustParseAddr("10.0.2.9"), netip.MustParseAddr("fd52:6e65:7400::9")
	for _, c := range []struct {
		config Config
		field  string
		words  string
	}{
		{Config{Network: "container:x", Publish: []string{"80:80"}}, "Publish",
			"conflicting options: port publishing and the container type network mode"},
		{Config{Network: "container:x", PublishAll: true}, "Publish",
			"conflicting options: port publishing and the container type network mode"},
		{Config{Network: "container:x", UDPFullCone: true}, "UDPFullCone", "conflicting options: udp full cone and the container type network mode"},
		{Config{Network: "container:x", Hostname: "h"}, "Hostname", "conflicting options: hostname and the network mode"},
		{Config{Network: "container:x", DNS: []netip.Addr{ip}}, "DNS", "conflicting options: dns and the network mode"},
		{Config{Network: "container:x", DNSSearch: []string{"a"}}, "DNS", "conflicting options: dns and the network mode"},
		{Config{Network: "container:x", DNSOptions: []string{"a"}}, "DNS", "conflicting options: dns and the network mode"},
		{Config{Network: "container:x", ExtraHosts: []string{"a:1.1.1.1"}}, "ExtraHosts",
			"conflicting options: custom host-to-IP mapping and the network mode"},
		{Config{Network: "container:x", MAC: mac}, "MAC", "conflicting options: mac-address and the network mode"},
		{Config{Network: "container:x", IP: ip}, "IP", "conflicting options: ip address and the network mode"},
		{Config{Network: "container:x", IP6: ip6}, "IP", "conflicting options: ip address and the network mode"},
		{Config{Network: "container:x", UserNS: UserNSRoot}, "UserNS", "conflicting options: userns and the container type network mode"},
		{Config{Network: "container:x", MTU: 1400}, "MTU", "conflicting options: mtu and the container type network mode"},
		{Config{Network: "container:x", DisableIPv6: true}, "DisableIPv6", "conflicting options: ipv6 and the container type network mode"},
		{Config{Network: "host", IP: ip}, "IP", "conflicting options: ip address and the network mode"},
		{Config{Network: "none", MAC: mac}, "MAC", "conflicting options: mac-address and the network mode"},
		{Config{Network: "container:"}, "Network", "invalid network mode: invalid container format container:<name|id>"},
		{Config{Network: "container"}, "Network", "invalid network mode: invalid container format container:<name|id>"},
		{Config{Network: "foo"}, "Network", "network foo not found"},
		{Config{Name: "a b"}, "Name", "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{Config{Name: "../x"}, "Name", "Invalid container name (../x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{Config{Hostname: "-x"}, "Hostname", "invalid hostname: -x"},
		{Config{Hostname: strings.Repeat("a", 65)}, "Hostname", "invalid hostname: " + strings.Repeat("a", 65)},
		{Config{ExtraHosts: []string{"a"}}, "ExtraHosts", `bad format for add-host: "a"`},
		{Config{ExtraHosts: []string{":1.1.1.1"}}, "ExtraHosts", `bad format for add-host: ":1.1.1.1"`},
		{Config{ExtraHosts: []string{"a\nb:1.1.1.1"}}, "ExtraHosts", `bad format for add-host: "a\nb:1.1.1.1"`},
		{Config{ExtraHosts: []string{"a:1.1.1"}}, "ExtraHosts", `invalid IP address in add-host: "1.1.1"`},
		{Config{DNSSearch: []string{"a b"}}, "DNSSearch", "a b is not a valid domain"},
		{Config{DNSOptions: []string{"a\nnameserver 1.1.1.1"}}, "DNSOptions", `invalid dns option: "a\nnameserver 1.1.1.1"`},
		{Config{MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}, "MAC", "01:02:03:04:05:06 is not a valid mac address"},
		{Config{MTU: 67}, "MTU", "invalid MTU: 67 (must be between 68 and 65521)"},
		{Config{MTU: 65522}, "MTU", "invalid MTU: 65522 (must be between 68 and 65521)"},
		{Config{Link: "x"}, "Link", `invalid link: "x" (must be auto, tap, tap-plain or packet)`},
		{Config{UserNS: "x"}, "UserNS", `invalid userns mode: "x" (must be keep-id, root or auto)`},
		{Config{IP: netip.MustParseAddr("192.0.2.1")}, "IP", "no configured subnet contains IP address 192.0.2.1 (the subnet is 10.0.2.0/24 unless another is given)"},
		{Config{IP: netip.MustParseAddr("10.0.2.2")}, "IP", "Address already in use"},
		{Config{IP: netip.MustParseAddr("10.0.2.255")}, "IP", "invalid IP address 10.0.2.255: network or broadcast address of 10.0.2.0/24"},
		{Config{IP: ip6}, "IP", "invalid IPv4 address: fd52:6e65:7400::9"},
		{Config{IP6: ip}, "IP6", "invalid IPv6 address: 10.0.2.9"},
		{Config{IP6: ip6, DisableIPv6: true}, "IP6", "conflicting options: IPv6 address and disabled IPv6"},
		{Config{Subnet: netip.MustParsePrefix("10.0.2.5/24")}, "Subnet", "invalid subnet 10.0.2.5/24: it should be 10.0.2.0/24"},
		{Config{Subnet: netip.MustParsePrefix("10.0.2.4/31")}, "Subnet", "invalid subnet 10.0.2.4/31: prefix length needs to be 8-30"},
		{Config{Subnet: netip.MustParsePrefix("127.0.0.0/8")}, "Subnet", "invalid subnet 127.0.0.0/8: not a network of ordinary addresses"},
		{Config{Publish: []string{"x:80"}}, "Publish", "invalid hostPort: x"},
		{Config{HostLoopback: HostLoopback{Ports: []uint16{0}}}, "HostLoopback", "invalid port: 0"},
	} {
		c.config.Argv = []string{"true"}
		_, err := Resolve(&c.config, host())
		var u *UsageError
		if !errors.As(err, &u) {
			t.Errorf("%q: got %v", c.words, err)
			continue
		}
		if u.Error() != c.words || u.Field != c.field {
			t.Errorf("got %s: %q\nwant %s: %q", u.Field, u, c.field, c.words)
		}
	}
	if err := (&Config{}).Validate(); err == nil {
		t.Error("a Config without a command is valid")
	}
}

func TestHostAndNoneDiscardPorts(t *testing.T) {
	for _, mode := range []string{NetworkHost, NetworkNone} {
		c := Config{Argv: []string{"true"}, Network: mode, Publish: []string{"80:80"}}
		p, err := Resolve(&c, host())
		if err != nil {
			t.Fatal(err)
		}
		want := "Published ports are discarded when using " + mode + " network mode"
		if len(p.Ports) != 0 || len(p.Warnings) != 1 || p.Warnings[0] != want {
			t.Errorf("%s: ports %v warnings %q", mode, p.Ports, p.Warnings)
		}
	}
}

func TestExtraHosts(t *testing.T) {
	for spec, want := range map[string]ExtraHost{
		"a:1.2.3.4":         {"a", netip.MustParseAddr("1.2.3.4")},
		"a=1.2.3.4":         {"a", netip.MustParseAddr("1.2.3.4")},
		"a:::1":             {"a", netip.MustParseAddr("::1")},
		"a=[2001:db8::1]":   {"a", netip.MustParseAddr("2001:db8::1")},
		"a.b:host-gateway":  {"a.b", netip.Addr{}},
		"a:::ffff:10.0.0.1": {"a", netip.MustParseAddr("10.0.0.1")},
	} {
		if got, err := parseExtraHost(spec); err != nil || got != want {
			t.Errorf("%s: %v %v", spec, got, err)
		}
	}
}

func TestParseHostLoopback(t *testing.T) {
	if h, err := ParseHostLoopback("5432,8080"); err != nil || len(h.Ports) != 2 || h.Ports[1] != 8080 || h.All {
		t.Errorf("%v %v", h, err)
	}
	if h, err := ParseHostLoopback("all"); err != nil || !h.All {
		t.Errorf("%v %v", h, err)
	}
	for _, bad := range []string{"0", "x", "80,", "65536", "80-90"} {
		if h, err := ParseHostLoopback(bad); err == nil {
			t.Errorf("%q: %v", bad, h)
		}
	}
}
