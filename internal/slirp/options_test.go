package slirp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func noInterfaces(string, bool) (netip.Addr, error) {
	return netip.Addr{}, errors.New("no such interface")
}

// TestCallers parses the exact command lines with which other programs start slirp4netns.
func TestCallers(t *testing.T) {
	for _, c := range []struct {
		name, line string
		check      func(*Options) bool
	}{
		{"Podman 4.3, a container",
			"--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -e 3 -r 4 --api-socket /tmp/x.net --netns-type=path /proc/self/ns/net tap0",
			func(o *Options) bool {
				return o.Type == ByPath && o.Path == "/proc/self/ns/net" && o.TAPName == "tap0" && o.ExitFD == 3 && o.ReadyFD == 4 && o.MTU == 65520 &&
					o.DisableHostLoopback && o.IPv6 && o.Configure && o.Sandbox && o.APISocket == "/tmp/x.net"
			}},
		{"Podman 4.3, own user namespace", "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -e 3 -r 4 77 tap0",
			func(o *Options) bool { return o.Type == ByPID && o.PID == 77 && o.ExitFD == 3 }},
		{"Podman 4.3, bridge", "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -r 3 --netns-type=path /proc/self/ns/net tap0",
			func(o *Options) bool { return o.ExitFD == -1 && o.ReadyFD == 3 }},
		{"Buildah", "--mtu 65520 -r 3 -c 77 tap0",
			func(o *Options) bool {
				return o.PID == 77 && o.Configure && !o.DisableHostLoopback && !o.IPv6 && !o.Sandbox
			}},
		{"RootlessKit", "--mtu 65520 -r 3 --disable-host-loopback --api-socket /tmp/s --enable-sandbox --enable-seccomp 77 tap0",
			func(o *Options) bool { return o.PID == 77 && !o.Configure && o.APISocket == "/tmp/s" }},
		{"RootlessKit --detach-netns", "--mtu 65520 -r 3 --userns-path=/proc/self/ns/user --netns-type=path /proc/self/ns/net tap0",
			func(o *Options) bool { return o.UserNSPath == "/proc/self/ns/user" && o.Type == ByPath }},
		{"a TAP that is open", "--netns-type=tapfd 5", func(o *Options) bool { return o.Type == ByTAPFD && o.TAPFD == 5 }},
		{"a virtual machine", "--target-type=bess /tmp/bess.sock", func(o *Options) bool { return o.Type == ByBESS && o.Path == "/tmp/bess.sock" }},
		{"defaults", "1 tap0", func(o *Options) bool {
			return o.MTU == 1500 && o.Gateway() == netip.MustParseAddr("10.0.2.2") && o.DNS() == netip.MustParseAddr("10.0.2.3") &&
				o.Guest() == netip.MustParseAddr("10.0.2.100") && o.ExitFD == -1 && o.ReadyFD == -1
		}},
		{"another subnet", "--cidr=10.128.0.0/9 1 tap0", func(o *Options) bool { return o.Guest() == netip.MustParseAddr("10.128.0.100") }},
		{"the first address of a /25", "--cidr=192.168.4.128/25 1 tap0", func(o *Options) bool { return o.Guest() == netip.MustParseAddr("192.168.4.228") }},
		{"deprecated options", "--no-host-loopback --create-sandbox 1 tap0",
			func(o *Options) bool { return o.DisableHostLoopback && o.Sandbox && len(o.Warnings) == 2 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := Parse("slirp4netns", strings.Fields(c.line), noInterfaces)
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(o) {
				t.Errorf("%s\nwas parsed as %+v", c.line, *o)
			}
		})
	}
}

// TestMistakes: invalid command lines are refused with the original's error texts.
func TestMistakes(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", "needed"},
		{"1", "TAP"},
		{"abc tap0", "PID must be a positive integer"},
		{"0 tap0", "PID must be a positive integer"},
		{"--bogus 1 tap0", "slirp4netns: unrecognized option '--bogus'"},
		{"--mtu=0 1 tap0", "MTU must be a positive integer (< 65522)"},
		{"--mtu=65522 1 tap0", "MTU must be a positive integer (< 65522)"},
		{"-e -1 1 tap0", "exit-fd must be a non-negative integer"},
		{"-r x 1 tap0", "ready-fd must be a non-negative integer"},
		{"--cidr=10.0.2.0/24/3 1 tap0", "prefix length needs to be 1-25"},
		{"--cidr=abc 1 tap0", "invalid CIDR"},
		{"--cidr=fd00::/24 1 tap0", "invalid CIDR"},
		{"--cidr=10.0.2.0 1 tap0", "invalid CIDR"},
		{"--cidr=10.0.2.5/24 1 tap0", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.5/24"},
		{"--cidr=10.0.2.0/26 1 tap0", "prefix length needs to be 1-25"},
		{"--cidr=10.0.2.0/0 1 tap0", "prefix length needs to be 1-25"},
		{"--netns-type=path /nonexistent/x tap0", "existing path expected when --netns-type=path: no such file"},
		{"--netns-type=foo 1 tap0", "--netns-type"},
		{"--target-type=foo 1 tap0", `--target-type must be either "netns" or "bess"`},
		{"--macaddress=02:11:22:33:44:55 1 tap0", "--macaddr cannot be specified when --configure or -c is not specified"},
		{"-c --macaddress=zz 1 tap0", "invalid MAC"},
		{"--outbound-addr=nosuch 1 tap0", "no such interface"},
		{"--outbound-addr=::1 1 tap0", "not an IPv4"},
		{"--outbound-addr6=1.2.3.4 1 tap0", "not an IPv6"},
		{"--userns-path=/nope 1 tap0", "userns path doesn't exist: /nope"},
		{"-a " + strings.Repeat("x", 108) + " 1 tap0", "too long (>= 108)"},
	} {
		if _, err := Parse("slirp4netns", strings.Fields(c.line), noInterfaces); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one with %q", c.line, err, c.want)
		}
	}
}

// TestProbedTexts: the usage and the version contain the strings that Podman and RootlessKit search for before they use an option.
func TestProbedTexts(t *testing.T) {
	for _, word := range []string{"--disable-host-loopback", "--mtu", "--enable-sandbox", "--enable-seccomp", "--cidr", "--outbound-addr", "--enable-ipv6", "--api-socket", "--netns-type"} {
		if !strings.Contains(Usage, word) {
			t.Errorf("the usage does not name %s", word)
		}
	}
	for _, o := range optionTable {
		if o.Key == "" && !strings.Contains(Usage, "--"+o.Name) {
			t.Errorf("the usage does not name --%s", o.Name)
		}
	}
	if !strings.Contains(Version("dev"), "\nSLIRP_CONFIG_VERSION_MAX: 4\n") {
		t.Error("the version lacks SLIRP_CONFIG_VERSION_MAX")
	}
}
