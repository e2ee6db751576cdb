package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rootlessnet"
	"rootlessnet/api"
	"rootlessnet/internal/state"
	"rootlessnet/userns"
)

// fakeSandbox is an api.Backend without a sandbox.
type fakeSandbox struct {
	entry *state.Entry

	mu    sync.Mutex
	ports []api.Port
	execs int

	signals []syscall.Signal
}

func (f *fakeSandbox) Inspect() api.Sandbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	return api.Sandbox{
		ID: f.entry.ID(), Name: f.entry.Name(), Status: api.StatusRunning, Network: "bridge", InitPID: 4711, Ports: f.ports,
		Created: time.Now().Add(-90 * time.Second), Command: []string{"python3", "-m", "http.server", "80"},
		MAC: "02:42:0a:00:02:64", MTU: 65520,
		Subnets:   []netip.Prefix{prefix("10.0.2.0/24"), prefix("fd52:6e65:7400::/64")},
		Gateways:  []netip.Addr{addr("10.0.2.2"), addr("fd52:6e65:7400::2")},
		Addresses: []netip.Addr{addr("10.0.2.100"), addr("fd52:6e65:7400::100")},
	}
}

func (f *fakeSandbox) Stats() api.Stats {
	return api.Stats{RxBytes: 1234567, TxBytes: 89, Counters: map[string]uint64{api.CounterSplicedOut: 911, "policy.loopback": 3}}
}

func (f *fakeSandbox) Ports() []api.Port {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ports
}

func (f *fakeSandbox) AddPorts(_ context.Context, spec string) ([]api.Port, error) {
	mappings, err := rootlessnet.ParsePortSpec(spec)
	if err != nil {
		return nil, api.Invalid(err)
	}
	var added []api.Port
	for _, m := range mappings {
		if m.HostPort == 99 {
			return nil, api.Conflict(errors.New("failed to bind host port 0.0.0.0:99/tcp: address already in use"))
		}
		for _, ip := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			added = append(added, api.Port{Proto: m.Proto, HostIP: ip, HostPort: m.HostPort, GuestPort: m.GuestPort})
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ports = append(f.ports, added...)
	return added, nil
}

func (f *fakeSandbox) AddMapping(context.Context, api.Mapping) ([]api.Port, error) { return nil, nil }
func (f *fakeSandbox) RemoveMapping(context.Context, int) ([]api.Port, error)      { return nil, nil }
func (f *fakeSandbox) RemovePorts(context.Context, string) ([]api.Port, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	removed := f.ports
	f.ports = nil
	return removed, nil
}

func (f *fakeSandbox) Kill(sig syscall.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signals = append(f.signals, sig)
	return nil
}

func (f *fakeSandbox) Rename(name string) error { return f.entry.Rename(name) }

func (f *fakeSandbox) Lease(kind api.LeaseKind) (func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.execs++
	return func() { f.mu.Lock(); f.execs--; f.mu.Unlock() }, nil
}

// start makes the state directory and the control socket of a running sandbox below dir.
func start(t *testing.T, dir, name string) (*fakeSandbox, *api.Server) {
	t.Helper()
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	e, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := api.Listen(e.SocketPath())
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeSandbox{entry: e}
	s := api.NewServer(f, api.ServerOptions{})
	s.Serve(l)
	t.Cleanup(func() { s.Close(); e.Close() })
	return f, s
}

type result struct {
	code        int
	out, errOut string
}

func invoke(t *testing.T, dir string, enter func(context.Context, int, userns.Command, func()) (int, error), args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	p := program{stdin: os.Stdin, stdout: &out, stderr: &errOut, stateDir: dir, enter: enter}
	code := p.main(t.Context(), args)
	return result{code, out.String(), errOut.String()}
}

func TestErrorsAndExitCodes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	start(t, dir, "web")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"inspect nope", 1, "rootless-net: No such sandbox: nope\n"},
		{"stats nope", 1, "rootless-net: No such sandbox: nope\n"},
		{"port ls nope", 1, "rootless-net: No such sandbox: nope\n"},
		{"port add nope 80", 1, "rootless-net: No such sandbox: nope\n"},
		{"port add web 99:80", 1, "rootless-net: failed to bind host port 0.0.0.0:99/tcp: address already in use\n"},
		{"port add web x:80", 125, "rootless-net: invalid port spec \"x:80\": invalid hostPort: x\nSee 'rootless-net port add --help'.\n"},
		{"exec nope true", 1, "rootless-net: No such sandbox: nope\n"},
		{"exec web", 125, "rootless-net: \"rootless-net exec\" requires at least 2 arguments.\nSee 'rootless-net exec --help'.\n"},
		{"inspect", 125, "rootless-net: \"rootless-net inspect\" requires at least 1 argument.\nSee 'rootless-net inspect --help'.\n"},
		{"logs", 125, "rootless-net: \"rootless-net logs\" requires exactly 1 argument.\nSee 'rootless-net logs --help'.\n"},
		{"port web 81", 1, "rootless-net: no public port '81/tcp' published for web\n"},
		{"port web 81/x", 125, "rootless-net: invalid port: \"81/x\"\nSee 'rootless-net port --help'.\n"},
		{"ps -o yaml", 125, "rootless-net: unknown output format \"yaml\": table or json\nSee 'rootless-net ps --help'.\n"},
		{"ps --nope", 125, "rootless-net: unknown flag: --nope\nSee 'rootless-net ps --help'.\n"},
		{"nope", 125, "rootless-net: \"nope\" is not a rootless-net command\nSee 'rootless-net --help'.\n"},
		{"port nope", 1, "rootless-net: No such sandbox: nope\n"},
	} {
		r := invoke(t, dir, nil, strings.Fields(c.args)...)
		if r.code != c.code || r.errOut != c.want {
			t.Errorf("rootless-net %s: exit %d %q, want %d %q", c.args, r.code, r.errOut, c.code, c.want)
		}
	}
}

func TestPS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	if r := invoke(t, dir, nil, "ps", "-o", "json"); r.code != 0 || strings.TrimSpace(r.out) != "[]" {
		t.Errorf("%+v", r)
	}
	f, _ := start(t, dir, "web")
	for i := range uint16(3) {
		f.ports = append(f.ports, api.Port{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 8000 + i, GuestPort: 80 + i})
	}
	r := invoke(t, dir, nil, "ps")
	id := f.entry.ID()[:12]
	want := "SANDBOX ID     COMMAND                  CREATED              STATUS    NETWORK   PORTS                             NAMES\n" +
		id + "   \"python3 -m http.ser…\"   About a minute ago   Up About a minute   bridge    0.0.0.0:8000-8002->80-82/tcp      web\n"
	if strings.Join(strings.Fields(r.out), " ") != strings.Join(strings.Fields(want), " ") || r.code != 0 {
		t.Errorf("got\n%swant\n%s", r.out, want)
	}
	if r := invoke(t, dir, nil, "ps", "-q"); r.out != id+"\n" {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "ps", "-q", "--no-trunc"); r.out != f.entry.ID()+"\n" {
		t.Errorf("%+v", r)
	}
	var boxes []api.Sandbox
	if r := invoke(t, dir, nil, "ps", "-o", "json"); json.Unmarshal([]byte(r.out), &boxes) != nil || len(boxes) != 1 || len(boxes[0].Ports) != 3 {
		t.Errorf("%+v", r)
	}
}

// TestPSWithoutSocket lists a sandbox that is still being set up and has no control socket yet.
func TestPSWithoutSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	e, err := d.Create("early")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if r := invoke(t, dir, nil, "ps"); r.code != 0 || !strings.Contains(r.out, "Created") || !strings.Contains(r.out, "early") {
		t.Errorf("%+v", r)
	}
}

func TestInspectHasTheFormOfDocker(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	f, _ := start(t, dir, "web")
	f.ports = []api.Port{{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80}}
	r := invoke(t, dir, nil, "inspect", "web", "nope")
	if r.code != 1 || r.errOut != "rootless-net: No such sandbox: nope\n" {
		t.Errorf("%d %q", r.code, r.errOut)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 1 {
		t.Fatalf("%v\n%s", err, r.out)
	}
	n := list[0]
	for key, want := range map[string]string{
		"Name": `"web"`, "Id": `"` + f.entry.ID() + `"`, "Scope": `"local"`, "Driver": `"bridge"`, "EnableIPv4": "true", "EnableIPv6": "true",
		"IPAM": `{"Config":[{"Gateway":"10.0.2.2","Subnet":"10.0.2.0/24"},{"Gateway":"fd52:6e65:7400::2","Subnet":"fd52:6e65:7400::/64"}],` +
			`"Driver":"default","Options":null}`,
		"Internal": "false", "Attachable": "false", "Ingress": "false", "Labels": "{}",
		"Containers": `{"` + f.entry.ID() + `":{"EndpointID":"` + f.entry.ID() + `","IPv4Address":"10.0.2.100/24",` +
			`"IPv6Address":"fd52:6e65:7400::100/64","MacAddress":"02:42:0a:00:02:64","Name":"web"}}`,
		"Options": `{"com.docker.network.driver.mtu":"65520"}`,
		"Ports":   `{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]}`,
	} {
		got, err := json.Marshal(n[key])
		if err != nil || string(got) != want {
			t.Errorf("%s: %s\nwant %s", key, got, want)
		}
	}
	if c, ok := n["Counters"].(map[string]any); !ok || c["policy.loopback"] != 3.0 || c["link.rx_bytes"] != 1234567.0 {
		t.Errorf("Counters: %v", n["Counters"])
	}
	if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(n["Created"])); err != nil {
		t.Error(err)
	}
}

func TestPortAddAndRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	f, _ := start(t, dir, "web")
	want := "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
	if r := invoke(t, dir, nil, "port", "add", f.entry.ID()[:6], "8080:80"); r.code != 0 || r.out != want {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "port", "ls", "web"); r.code != 0 || r.out != want {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "port", "rm", "web", "8080:80", "-o", "json"); r.code != 0 || !strings.Contains(r.out, `"hostPort": 8080`) {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "port", "ls", "web", "-o", "json"); r.out != "[]\n" {
		t.Errorf("%+v", r)
	}
	// The ports that were opened before a failure are printed.
	r := invoke(t, dir, nil, "port", "add", "web", "81:81", "99:99")
	if r.code != 1 || r.out != "81/tcp -> 0.0.0.0:81\n81/tcp -> [::]:81\n" || !strings.Contains(r.errOut, "address already in use") {
		t.Errorf("%+v", r)
	}
}

func TestStats(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	start(t, dir, "web")
	r := invoke(t, dir, nil, "stats", "web")
	for _, line := range []string{"COUNTER VALUE", "net i/o 1.235MB / 1kB", "link.rx_bytes 1234567", "policy.loopback 3"} {
		if !strings.Contains(strings.Join(strings.Fields(r.out), " "), line) {
			t.Errorf("no %q in\n%s", line, r.out)
		}
	}
	var s api.Stats
	if r := invoke(t, dir, nil, "stats", "-o", "json", "web"); json.Unmarshal([]byte(r.out), &s) != nil || s.RxBytes != 1234567 {
		t.Errorf("%+v", r)
	}
}

// leases waits up to a second until there are as many exec leases as wanted, and returns how many there are. A lease ends only
// when the server notices that its connection was closed.
func (f *fakeSandbox) leases(want int) (n int) {
	for range 200 {
		f.mu.Lock()
		n = f.execs
		f.mu.Unlock()
		if n == want {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return n
}

func TestExec(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	f, _ := start(t, dir, "web")
	t.Setenv("FROM_CALLER", "7")
	for _, c := range []struct {
		code    int
		err     error
		want    int
		message string
	}{
		{0, nil, 0, ""},
		{42, nil, 42, ""},
		{143, nil, 143, ""},
		{1, &userns.ExecError{Code: 127, Err: errors.New(`exec: "x": executable file not found in $PATH`)}, 127,
			"rootless-net: exec: \"x\": executable file not found in $PATH\n"},
		{1, &userns.ExecError{Code: 126, Err: errors.New("permission denied")}, 126, "rootless-net: permission denied\n"},
		{1, errors.New("no namespaces"), 1, "rootless-net: no namespaces\n"},
	} {
		var got userns.Command
		enter := func(_ context.Context, target int, cmd userns.Command, _ func()) (int, error) {
			if n := f.leases(1); target != 4711 || n != 1 {
				t.Errorf("target %d, %d leases", target, n)
			}
			got = cmd
			return c.code, c.err
		}
		r := invoke(t, dir, enter, "exec", "-i", "-e", "A=1", "-e", "FROM_CALLER", "-e", "UNSET_VARIABLE", "-w", "/tmp", "web", "x", "-y")
		if r.code != c.want || r.errOut != c.message {
			t.Errorf("exit %d %q, want %d %q", r.code, r.errOut, c.want, c.message)
		}
		env := strings.Join(got.Env[len(got.Env)-2:], " ")
		if fmt.Sprint(got.Argv) != "[x -y]" || got.Dir != "/tmp" || env != "A=1 FROM_CALLER=7" {
			t.Errorf("%v %s %s", got.Argv, got.Dir, env)
		}
	}
}

func TestExecEndsWithTheSandbox(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	_, server := start(t, dir, "web")
	enter := func(ctx context.Context, _ int, _ userns.Command, _ func()) (int, error) {
		go server.Close()
		select {
		case <-ctx.Done():
			return 1, context.Cause(ctx)
		case <-time.After(5 * time.Second):
			t.Error("the command was left running")
			return 0, nil
		}
	}
	if r := invoke(t, dir, enter, "exec", "web", "sleep"); r.code != 137 || r.errOut != "rootless-net: the sandbox has ended\n" {
		t.Errorf("%+v", r)
	}
}

func TestHumanDurationAndSize(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "Less than a second", time.Second: "1 second", 59 * time.Second: "59 seconds", 90 * time.Second: "About a minute",
		5 * time.Minute: "5 minutes", 90 * time.Minute: "About an hour", 47 * time.Hour: "47 hours", 50 * time.Hour: "2 days",
	} {
		if got := humanDuration(d); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
	for n, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1kB", 1234567: "1.235MB", 1 << 40: "1.1TB"} {
		if got := humanSize(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
