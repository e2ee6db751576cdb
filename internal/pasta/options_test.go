package pasta

import (
	"net/netip"
	"strings"
	"testing"
)

// TestCallers parses the command lines with which other programs start pasta.
func TestCallers(t *testing.T) {
	for _, c := range []struct {
		name, line string
		check      func(*Options) bool
	}{
		{"Podman", "--config-net -t 127.0.0.1/8080-8081:80-81 -u 53-53:53-53 --dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet " +
			"--netns /proc/self/ns/net --map-guest-addr 169.254.1.2",
			func(o *Options) bool {
				return o.ConfigNet && o.NetNS == "/proc/self/ns/net" && len(o.TCP.Rules) == 1 && o.TCP.Rules[0].To == 80 &&
					len(o.UDP.Rules) == 1 && len(o.TCPNS.Rules) == 0 && len(o.UDPNS.Rules) == 0 && o.NoMapLoopback && o.Quiet &&
					o.DNSForward[0] == netip.MustParseAddr("169.254.1.1") && o.MapGuest[0] == netip.MustParseAddr("169.254.1.2")
			}},
		{"Podman, bridge", "--config-net --pid /tmp/p -t none -u none -T none -U none --no-map-gw --netns /proc/self/ns/net --map-guest-addr 169.254.1.2 -c /tmp/s",
			func(o *Options) bool {
				return o.PIDFile == "/tmp/p" && len(o.TCP.Rules) == 0 && o.ControlSocket == "/tmp/s"
			}},
		{"RootlessKit", "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 " +
			"--no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo 77",
			func(o *Options) bool {
				return o.PID == 77 && o.IfName == "tap0" && o.MTU == 65520 && o.Netmask == 24 && o.IPv6Off && o.TCP.Auto() && o.HostLoToNSLo &&
					len(o.Addrs) == 1 && o.Addrs[0].Addr == netip.MustParseAddr("10.0.2.100") && o.Stderr
			}},
		{"RootlessKit --detach-netns", "--stderr --userns=/proc/self/ns/user --netns=/proc/self/ns/net",
			func(o *Options) bool { return o.UserNS == "/proc/self/ns/user" && !o.IsCommand() }},
		{"a command", "-f ls -l --color 5", func(o *Options) bool {
			return o.IsCommand() && strings.Join(o.Command, " ") == "ls -l --color 5"
		}},
		{"a command after --", "-- -x", func(o *Options) bool { return o.IsCommand() && len(o.Command) == 1 }},
		{"a shell", "", func(o *Options) bool { return o.IsCommand() && o.TCP.Auto() && o.UDPNS.Auto() }},
		{"the last one wins", "-m 1500 -m 9000 -g 10.0.0.1 -g 10.0.0.2 -g fd00::1", func(o *Options) bool {
			return o.MTU == 9000 && len(o.Gateways) == 2 && o.Gateways[0] == netip.MustParseAddr("10.0.0.2")
		}},
		{"version after an option", "--host-lo-to-ns-lo --version", func(o *Options) bool { return o.Version }},
		{"a name", "--netns self/../proc/self/ns/net", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := Parse("pasta", strings.Fields(c.line), ephemeral)
			if c.check == nil {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(o) {
				t.Errorf("%s\nwas read as %+v", c.line, *o)
			}
		})
	}
}

// TestMistakes: invalid command lines are refused with the original's error texts.
func TestMistakes(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"--bogus", "pasta: unrecognized option '--bogus'"},
		{"--vhost-user", "pasta: unrecognized option '--vhost-user'"},
		{"-4 -6", "mutually exclusive"},
		{"-a 10.0.0.1/33", "Invalid prefix length"},
		{"-a 127.0.0.1", "Invalid address"},
		{"-n 33", "Invalid netmask"},
		{"-n 255.0.255.0", "Invalid netmask"},
		{"-m 70000", "Invalid MTU"},
		{"-I 0123456789abcdef", "Invalid interface name"},
		{"-l x -e", "both file and stderr"},
		{"-t 22 -t none", "none conflicts with previous options"},
		{"-t auto -t 22", "Forwarding configuration conflict"},
		{"-T 127.0.0.1/22", "Listening address not allowed for --tcp-ns 127.0.0.1/22"},
		{"-U %lo/22", "Listening address not allowed"},
		{"--no-tcp -T 22", "TCP not enabled"},
		{"--no-udp -u auto", "UDP not enabled"},
		{"-a 192.0.2.1/24 -n 24", "Redundant prefix length"},
		{"--splice-only", "unrecognized option '--splice-only'"},
		{"--netns /proc/self/ns/net ls", "Both --netns and PID or command given"},
		{"--netns /nonexistent/x", "Couldn't open network namespace"},
		{"--userns /proc/self/ns/user ls", "--userns requires"},
		{"0", "Invalid PID"},
		{"-D x", "Cannot use DNS"},
		{"--dns-forward x", "Invalid DNS forwarding address"},
		{"--map-guest-addr 127.0.0.1", "Invalid address to remap"},
	} {
		if _, err := Parse("pasta", strings.Fields(c.line), ephemeral); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one with %q", c.line, err, c.want)
		}
	}
}
