package plan

import (
	"strings"
	"testing"
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
