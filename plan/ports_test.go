package plan

import (
	"net/netip"
	"strings"
	"testing"
)

// selectSpec parses a spec and selects the bound ports it names.
func selectSpec(spec string, bound []Port) ([]Port, error) {
	mappings, err := ParsePortSpec(spec)
	if err != nil {
		return nil, err
	}
	return SelectPorts(mappings, bound)
}

func TestSelectPorts(t *testing.T) {
	var bound []Port
	for _, s := range []string{"tcp 0.0.0.0:8080 80", "tcp [::]:8080 80", "tcp 127.0.0.1:9000 80", "udp 0.0.0.0:53 53"} {
		f := strings.Fields(s)
		host := netip.MustParseAddrPort(f[1])
		m, err := ParsePortSpec(f[2])
		if err != nil {
			t.Fatal(err)
		}
		bound = append(bound, Port{Proto: f[0], HostIP: host.Addr(), HostPort: host.Port(), GuestPort: m[0].GuestPort})
	}
	for spec, want := range map[string]string{
		"8080:80":         "0.0.0.0:8080->80/tcp [::]:8080->80/tcp",
		"80":              "0.0.0.0:8080->80/tcp [::]:8080->80/tcp 127.0.0.1:9000->80/tcp",
		"0.0.0.0:8080:80": "0.0.0.0:8080->80/tcp",
		"53/udp":          "0.0.0.0:53->53/udp",
		"8000-9000:80":    "0.0.0.0:8080->80/tcp [::]:8080->80/tcp 127.0.0.1:9000->80/tcp",
		"53":              "port is not published: :53/tcp",
		"8080":            "0.0.0.0:8080->80/tcp [::]:8080->80/tcp",
		"127.0.0.1::9000": "127.0.0.1:9000->80/tcp",
		"127.0.0.1::8080": "port is not published: 127.0.0.1::8080/tcp",
		"8080/udp":        "port is not published: :8080/udp",
		"8081:80":         "port is not published: 8081:80/tcp",
		"8080-8081:80-81": "port is not published: 8081:81/tcp",
		"x":               "invalid containerPort: x",
	} {
		ports, err := selectSpec(spec, bound)
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
		if got := errText(CheckFree(m, bound)); got != want {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}
