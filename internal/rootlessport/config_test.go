package rootlessport

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestReadConfig reads a document of Podman 4.3.1.
func TestReadConfig(t *testing.T) {
	const text = `{"Mappings":[{"host_ip":"","container_port":80,"host_port":8080,"range":2,"protocol":"tcp"},` +
		`{"host_ip":"127.0.0.1","container_port":53,"host_port":5353,"range":1,"protocol":"udp,tcp"},` +
		`{"host_ip":"::","container_port":9,"host_port":9000,"range":1,"protocol":"tcp"}],` +
		`"NetNSPath":"/run/user/1000/netns/cni-1","ExitFD":3,"ReadyFD":4,"TmpDir":"/run/user/1000/libpod/tmp","ChildIP":"10.89.0.2",` +
		`"ContainerID":"abc","RootlessCNI":true}`
	c, err := ReadConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	ports, err := c.Ports()
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	want := []Port{{Proto: "tcp", HostPort: 8080, ChildPort: 80}, {Proto: "tcp", HostPort: 8081, ChildPort: 81}, {"udp", local, 5353, 53}, {"tcp", local, 5353, 53},
		{Proto: "tcp", HostPort: 9000, ChildPort: 9}} // "::" means both families
	if !slices.Equal(ports, want) {
		t.Errorf("ports %v, want %v", ports, want)
	}
	if c.Socket() != "/run/user/1000/libpod/tmp/rp/abc" {
		t.Errorf("socket %q", c.Socket())
	}
	if n := len(ports[0].Listens()); n != 2 {
		t.Errorf("a port without an address listens on %d", n)
	}
}

func TestReadConfigMistakes(t *testing.T) {
	base := func(mapping string) string {
		return `{"Mappings":[` + mapping + `],"NetNSPath":"/x","ExitFD":3,"ReadyFD":4}`
	}
	for _, c := range []struct{ text, want string }{
		{"", "standard input"},
		{"{}", "NetNSPath"},
		{`{"NetNSPath":"/x"}`, "ExitFD"},
		{`{"NetNSPath":"/x","ExitFD":3}`, "ReadyFD"},
		{`{"NetNSPath":"/x","ExitFD":3,"ReadyFD":3}`, "both 3"},
		{`{"NetNSPath":"/x","ExitFD":3,"ReadyFD":4,"ChildIP":"zz"}`, "address of the container"},
		{`{"NetNSPath":"/x","ExitFD":3,"ReadyFD":4,"RootlessCNI":true,"TmpDir":"/t","ContainerID":"../x"}`, "name no socket"},
		{base(`{"host_port":80,"container_port":80,"protocol":"sctp"}`), "unsupported protocol"},
		{base(`{"host_port":0,"container_port":80}`), "invalid port mapping"},
		{base(`{"host_port":65535,"container_port":80,"range":2}`), "invalid port mapping"},
		{base(`{"host_ip":"x","host_port":1,"container_port":80}`), "host IP"},
	} {
		if _, err := ReadConfig(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.text, err, c.want)
		}
	}
}
