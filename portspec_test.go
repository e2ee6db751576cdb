package rootlessnet

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"rootlessnet/api"
)

func TestParsePortSpec(t *testing.T) {
	for spec, want := range map[string]string{
		"80":                       ":80/tcp",
		":80":                      ":80/tcp",
		"0:80":                     ":80/tcp",
		"8080:80":                  "8080:80/tcp",
		"8080:80/UDP":              "8080:80/udp",
		"127.0.0.1:8080:80":        "127.0.0.1:8080:80/tcp",
		"127.0.0.1::80":            "127.0.0.1::80/tcp",
		"[::1]:8080:80":            "[::1]:8080:80/tcp",
		"[::ffff:192.0.2.1]:1:80":  "192.0.2.1:1:80/tcp",
		"0.0.0.0:8080:80":          "0.0.0.0:8080:80/tcp",
		"8000-8002:80-82":          "8000:80/tcp 8001:81/tcp 8002:82/tcp",
		"80-81":                    ":80/tcp :81/tcp",
		"8000-8010:80":             "8000-8010:80/tcp",
		"published=8080,target=80": "8080:80/tcp",
		"target=80":                ":80/tcp",
		"published=53,target=53,protocol=udp,host_ip=127.0.0.1": "127.0.0.1:53:53/udp",
		"published=53,target=53,host_ip=::1":                    "[::1]:53:53/tcp",
	} {
		mappings, err := ParsePortSpec(spec)
		var words []string
		for _, m := range mappings {
			words = append(words, m.String())
		}
		if got := strings.Join(words, " "); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", spec, got, err, want)
		}
	}
}

func TestPortSpecErrors(t *testing.T) {
	for spec, want := range map[string]string{
		"x:80":                   "invalid hostPort: x",
		"8080:x":                 "invalid containerPort: x",
		"8080:0":                 "invalid containerPort: 0",
		"0":                      "invalid containerPort: 0",
		"8080:0-3":               "invalid hostPort: 8080",
		"0-3/udp":                "invalid containerPort: 0-3",
		"0-3:80-83":              "invalid hostPort: 0-3",
		"0-3:80":                 "invalid hostPort: 0-3",
		"8080:80/foo":            "invalid proto: foo",
		"8080:80/sctp":           "unsupported proto: sctp (only tcp and udp can be published)",
		"8000-8001:80-82":        "invalid ranges specified for container and host Ports: 80-82 and 8000-8001",
		"65536:80":               "invalid hostPort: 65536",
		"-1:80":                  "invalid hostPort: -1",
		"8080:":                  "no port specified: 8080:<empty>",
		"":                       "no port specified: <empty>",
		"1.2.3:80:80":            "invalid IP address: 1.2.3",
		"localhost:80:80":        "invalid IP address: localhost",
		"published=80":           "no port specified: 80:/tcp<empty>",
		"published=80,target":    "invalid publish opts format (should be name=value but got 'target')",
		"published=80,tarjet=80": "invalid field key tarjet",
		"published=x,target=80":  "invalid hostPort: x",
	} {
		// Docker's parser compares the lengths of two ranges first.
		if spec == "8080:0-3" {
			want = "invalid ranges specified for container and host Ports: 0-3 and 8080"
		}
		if m, err := ParsePortSpec(spec); err == nil || err.Error() != want {
			t.Errorf("%q: %v, %v; want %s", spec, m, err, want)
		}
	}
}

func TestPortOverlap(t *testing.T) {
	for _, c := range []struct{ specs, want string }{
		{"8080:80 8080:80", "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		{"8080:80 8080:81", "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		{"127.0.0.1:8080:80 8080:81", "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		{"8080:80 [::1]:8080:80", "Bind for [::1]:8080 failed: port is already allocated"},
		{"8000-8005:8000-8005 8003:1", "Bind for 0.0.0.0:8003 failed: port is already allocated"},
		{"8080:80 8080:80/udp", ""},
		{"127.0.0.1:8080:80 127.0.0.2:8080:80", ""},
		{"0.0.0.0:8080:80 [::]:8080:80", ""},
		{"80 80", ""},
		{"8000-8001:80 8000-8001:81", ""},
	} {
		_, err := ParsePortSpecs(strings.Fields(c.specs))
		if got := errText(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.specs, got, c.want)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func FuzzParsePortSpec(f *testing.F) {
	for _, s := range []string{"80", "8080:80/tcp", "[::1]:8080-8090:80-90/udp", "published=1,target=2", "1-65535:1-65535", ":::", "[::1%lo]::80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		mappings, err := ParsePortSpec(spec)
		if err != nil {
			return
		}
		for _, m := range mappings {
			if m.GuestPort == 0 || m.HostPortEnd < m.HostPort || m.Proto != "tcp" && m.Proto != "udp" {
				t.Fatalf("%q gave %+v", spec, m)
			}
			if m.Ephemeral() != (m.HostPortEnd == 0) || m.HostIP.Is4In6() {
				t.Fatalf("%q gave %+v", spec, m)
			}
			again, err := ParsePortSpec(m.String())
			if err != nil || len(again) != 1 || again[0] != m {
				t.Fatalf("%q: %+v reads back as %+v, %v", spec, m, again, err)
			}
		}
	})
}

func TestBindError(t *testing.T) {
	addr := netip.MustParseAddrPort
	if got := bindError("tcp", addr("0.0.0.0:8080"), syscall.EADDRINUSE).Error(); got != "failed to bind host port 0.0.0.0:8080/tcp: address already in use" {
		t.Error(got)
	}
	low := unprivilegedPortStart(lowPortFile)
	got := bindError("tcp", addr("0.0.0.0:80"), syscall.EACCES).Error()
	if low > 80 && !strings.HasPrefix(got, `cannot expose privileged port 80, you might need to add "net.ipv4.ip_unprivileged_port_start=0" (currently `) {
		t.Error(got)
	}
	if unprivilegedPortStart("/nonexistent") != 1024 {
		t.Error("no default")
	}
}

func TestSelectPorts(t *testing.T) {
	var bound []api.Port
	for _, s := range []string{"tcp 0.0.0.0:8080 80", "tcp [::]:8080 80", "tcp 127.0.0.1:9000 80", "udp 0.0.0.0:53 53"} {
		f := strings.Fields(s)
		host := netip.MustParseAddrPort(f[1])
		m, err := ParsePortSpec(f[2])
		if err != nil {
			t.Fatal(err)
		}
		bound = append(bound, api.Port{Proto: f[0], HostIP: host.Addr(), HostPort: host.Port(), GuestPort: m[0].GuestPort})
	}
	for spec, want := range map[string]string{
		"8080:80":         "0.0.0.0:8080->80/tcp [::]:8080->80/tcp",
		"80":              "0.0.0.0:8080->80/tcp [::]:8080->80/tcp 127.0.0.1:9000->80/tcp",
		"0.0.0.0:8080:80": "0.0.0.0:8080->80/tcp",
		"53/udp":          "0.0.0.0:53->53/udp",
		"8000-9000:80":    "0.0.0.0:8080->80/tcp [::]:8080->80/tcp 127.0.0.1:9000->80/tcp",
		"53":              "port is not published: :53/tcp",
		"8081:80":         "port is not published: 8081:80/tcp",
		"8080-8081:80-81": "port is not published: 8081:81/tcp",
		"x":               "invalid containerPort: x",
	} {
		ports, err := selectPorts(spec, bound)
		got := errText(err)
		if err == nil {
			var words []string
			for _, p := range ports {
				words = append(words, p.String())
			}
			got = strings.Join(words, " ")
		}
		if got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
	for spec, want := range map[string]string{
		"8080:8080":         "Bind for 0.0.0.0:8080 failed: port is already allocated",
		"127.0.0.2:8080:80": "Bind for 127.0.0.2:8080 failed: port is already allocated",
		"127.0.0.2:9000:80": "",
		"8080:80/udp":       "",
		"8080-8081:80":      "",
		"80":                "",
	} {
		m, err := ParsePortSpec(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := errText(checkFree(m, bound)); got != want {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}
