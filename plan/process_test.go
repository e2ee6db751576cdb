package plan

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"rootlessnet/internal/nettest/skip"
)

func TestUser(t *testing.T) {
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		skip.Missing(t, "needs an ordinary user, for whom the id maps differ: make test")
	}
	own := fmt.Sprintf("%d:%d", uid, gid)
	for _, c := range []struct{ userns, user, network, wantNS, want string }{
		{user: "0", wantNS: UserNSRoot, want: "0:0"},
		{user: "root", wantNS: UserNSRoot, want: "0:0"},
		{user: "0:0", userns: UserNSRoot, wantNS: UserNSRoot, want: "0:0"},
		{user: fmt.Sprint(uid), wantNS: UserNSKeepID, want: own},
		{user: own, wantNS: UserNSKeepID, want: own},
		{user: "70000:70001", wantNS: UserNSAuto, want: "70000:70001"},
		{user: "0", userns: UserNSAuto, wantNS: UserNSAuto, want: "0:0"},
		{user: "7", network: "container:web", wantNS: DefaultUserNS},
	} {
		config := Config{Argv: []string{"true"}, User: c.user, UserNS: c.userns, Network: c.network}
		p, err := Resolve(&config, noHost{})
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got := fmt.Sprintf("%d:%d", p.User.UID, p.User.GID); p.UserNS != c.wantNS || c.want != "" && got != c.want {
			t.Errorf("%+v: userns %s, user %s", c, p.UserNS, got)
		}
	}
	for _, c := range []struct{ userns, user, want string }{
		{user: "no-such-user", want: "unable to find user no-such-user: no matching entries in passwd file"},
		{user: "0:no-such-group", want: "unable to find group no-such-group: no matching entries in group file"},
		{user: "4294967295", want: "unable to find user 4294967295: no matching entries in passwd file"},
		{user: "7:7", userns: UserNSRoot, want: "user 7:7 does not exist inside: userns root has user 0 and group 0 only"},
		{user: "0:7", want: "user 0:7 does not exist inside: userns root has user 0 and group 0 only"},
		{user: "0", userns: UserNSKeepID, want: fmt.Sprintf("user 0:0 does not exist inside: userns keep-id has user %d and group %d only", uid, gid)},
	} {
		config := Config{Argv: []string{"true"}, User: c.user, UserNS: c.userns}
		var usage *UsageError
		if err := config.Validate(); !errors.As(err, &usage) || usage.Field != "User" || err.Error() != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestProcessOptions(t *testing.T) {
	c := Config{Argv: []string{"true"}, CapAdd: []string{"NET_ADMIN", "cap_net_raw"}, StopSignal: "quit",
		Sysctls: []string{"net.ipv4.ip_forward=1", "net/ipv4/conf/eth0.1/forwarding=0", "net.ipv4.ip_local_port_range=1000 2000"}}
	p, err := Resolve(&c, noHost{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Sysctl{{"net/ipv4/ip_forward", "1"}, {"net/ipv4/conf/eth0.1/forwarding", "0"}, {"net/ipv4/ip_local_port_range", "1000 2000"}}
	if fmt.Sprint(p.Caps) != "[12 13]" || fmt.Sprint(p.Sysctls) != fmt.Sprint(want) || p.StopSignal != syscall.SIGQUIT {
		t.Errorf("caps %v, sysctls %v, stop signal %v", p.Caps, p.Sysctls, p.StopSignal)
	}
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{CapAdd: []string{"SYS_ADMIN"}}, `invalid capability: "SYS_ADMIN" (NET_ADMIN, NET_RAW and NET_BIND_SERVICE can be added; userns root has all, over the sandbox's own namespaces)`},
		{Config{CapAdd: []string{"NET_RAW"}, Network: "host"}, "conflicting options: cap-add and the network mode (no capability of the sandbox is valid in the host's network)"},
		{Config{Sysctls: []string{"kernel.msgmax=1"}}, "sysctl 'kernel.msgmax=1' is not allowed: only net.* belongs to the sandbox"},
		{Config{Sysctls: []string{"net/../kernel/msgmax=1"}}, "sysctl 'net/../kernel/msgmax=1' is not allowed"},
		{Config{Sysctls: []string{"net.ipv4.ip_forward"}}, "sysctl 'net.ipv4.ip_forward' is not allowed: it must be name=value"},
		{Config{Sysctls: []string{"net.ipv4.ip_forward=1"}, Network: "host"}, `sysctl "net.ipv4.ip_forward" is not allowed in the hosts network namespace`},
		{Config{Sysctls: []string{"net.ipv4.ip_forward=1"}, Network: "container:x"}, "conflicting options: sysctl and the network mode"},
		{Config{StopSignal: "SIGNOPE"}, "invalid signal: SIGNOPE"},
	} {
		c.config.Argv = []string{"true"}
		if err := c.config.Validate(); err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{"9": 9, "TERM": 15, "sigint": 2, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "64": 64} {
		if got, err := ParseSignal(s); got != want || err != nil {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "65", "-1", "SIG", "RTMIN-1", "RTMIN+99", "RTMAX+1", "RTMIN3"} {
		if got, err := ParseSignal(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestPublishMode(t *testing.T) {
	m, err := ParsePortSpec("published=8080,target=80,mode=host")
	if err != nil || len(m) != 1 || m[0].String() != "8080:80/tcp" {
		t.Errorf("%v, %v", m, err)
	}
	for spec, want := range map[string]string{
		"published=8080,target=80,mode=ingress": "unsupported publish mode: ingress (it needs the routing mesh of a swarm; mode=host is what -p does)",
		"published=8080,target=80,mode=x":       "invalid publish mode: x",
	} {
		if _, err := ParsePortSpec(spec); err == nil || err.Error() != want {
			t.Errorf("%s: %v", spec, err)
		}
	}
}
