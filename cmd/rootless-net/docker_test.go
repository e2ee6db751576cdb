package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rootlessnet/api"
	"rootlessnet/internal/state"
)

// startEnded makes a sandbox that has ended with the code and printed the lines.
func startEnded(t *testing.T, dir, name string, code int, lines ...string) state.Record {
	t.Helper()
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	e, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	err = e.Update(func(r *state.Record) {
		r.Status, r.Keep, r.Started, r.Network, r.Command = state.Running, true, time.Now(), "bridge", []string{"server"}
		r.Labels = map[string]string{"tier": "front"}
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		l.Write(state.Stdout, []byte(line+"\n"))
	}
	l.Close()
	if err := e.End(code, nil); err != nil {
		t.Fatal(err)
	}
	r, err := d.LookupAny(e.ID())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPSAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	ended := startEnded(t, dir, "old", 7)
	f, _ := start(t, dir, "web")
	f.ports = []api.Port{{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80}}
	web, old := f.entry.ID()[:12], ended.ShortID()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"ps", "-q"}, web + "\n"},
		{[]string{"ps", "-aq"}, web + "\n" + old + "\n"},
		{[]string{"ps", "-l", "-q"}, web + "\n"},
		{[]string{"ps", "-n", "2", "-q"}, web + "\n" + old + "\n"},
		{[]string{"ps", "-a", "--format", "{{.Names}} {{.State}}"}, "web running\nold exited\n"},
		{[]string{"ps", "-a", "--format", `table {{.Names}}\t{{.Ports}}`}, "NAMES     PORTS\nweb       0.0.0.0:8080->80/tcp\nold       \n"},
		{[]string{"ps", "-a", "--format", `{{.Label "tier"}}|{{upper .Names}}`, "-f", "name=old"}, "front|OLD\n"},
		{[]string{"ps", "-q", "-f", "status=exited"}, old + "\n"},
		{[]string{"ps", "-q", "-f", "exited=7"}, old + "\n"},
		{[]string{"ps", "-aq", "-f", "exited=0"}, ""},
		{[]string{"ps", "-aq", "-f", "label=tier=front"}, old + "\n"},
		{[]string{"ps", "-aq", "-f", "label=tier=back"}, ""},
		{[]string{"ps", "-aq", "-f", "name=^/we"}, web + "\n"},
		{[]string{"ps", "-aq", "-f", "id=" + old[:6]}, old + "\n"},
		{[]string{"ps", "-aq", "-f", "publish=8000-9000"}, web + "\n"},
		{[]string{"ps", "-aq", "-f", "expose=80/udp"}, ""},
		{[]string{"ps", "-aq", "-f", "before=old"}, web + "\n"}, // the fake says that it is 90 s old,
		{[]string{"ps", "-aq", "-f", "since=web"}, old + "\n"},
		{[]string{"ps", "-aq", "-f", "status=exited", "-f", "status=running", "-f", "network=bridge"}, web + "\n" + old + "\n"},
	} {
		if r := invoke(t, dir, nil, c.args...); r.code != 0 || r.out != c.want {
			t.Errorf("%q: %+v, want %q", c.args, r, c.want)
		}
	}
	var row map[string]string
	if r := invoke(t, dir, nil, "ps", "-a", "--no-trunc", "-f", "name=old", "--format", "json"); json.Unmarshal([]byte(r.out), &row) != nil ||
		row["ID"] != ended.ID || !strings.HasPrefix(row["Status"], "Exited (7) ") || row["Labels"] != "tier=front" {
		t.Errorf("%+v", r)
	}
	for args, want := range map[string]string{
		"ps -f colour=red":    "invalid filter 'colour'",
		"ps -f name":          "bad format of filter (expected name=value)",
		"ps -f status=asleep": "invalid filter 'status=asleep'",
		"ps --format {{.No}}": "can't evaluate field No",
		"ps --format {{":      "template parsing error",
	} {
		if r := invoke(t, dir, nil, strings.Fields(args)...); r.code != 125 || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: %+v, want %q", args, r, want)
		}
	}
}

func TestLogs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	startEnded(t, dir, "old", 0, "one", "two", "three")
	start(t, dir, "web")
	for args, want := range map[string]string{
		"logs old":                    "one\ntwo\nthree\n",
		"logs -f old":                 "one\ntwo\nthree\n",
		"logs -n 2 old":               "two\nthree\n",
		"logs --tail 0 old":           "",
		"logs --tail all old":         "one\ntwo\nthree\n",
		"logs --since 1h old":         "one\ntwo\nthree\n",
		"logs --until 1h old":         "",
		"logs --since 2100-01-01 old": "",
	} {
		if r := invoke(t, dir, nil, strings.Fields(args)...); r.code != 0 || r.out != want {
			t.Errorf("%s: %+v, want %q", args, r, want)
		}
	}
	r := invoke(t, dir, nil, "logs", "-t", "old")
	stamp, text, _ := strings.Cut(r.out, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !strings.HasPrefix(text, "one\n") {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "logs", "web"); r.code != 1 || !strings.Contains(r.errOut, "sandbox web has no log") {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "logs", "--since", "soon", "old"); r.code != 125 || !strings.Contains(r.errOut, `invalid time: "soon"`) {
		t.Errorf("%+v", r)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                     {},
		"90m":                  now.Add(-90 * time.Minute),
		"2026-01-02T10:00:00Z": now.Add(-2 * time.Hour),
		"1767348000.5":         time.Unix(1767348000, 500000000),
		"2026-01-02":           time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
}

func TestEndedSandboxes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	startEnded(t, dir, "old", 7)
	f, _ := start(t, dir, "web")
	check := func(code int, out, errOut string, args ...string) {
		t.Helper()
		if r := invoke(t, dir, nil, args...); r.code != code || r.out != out || !strings.Contains(r.errOut, errOut) || errOut == "" && r.errOut != "" {
			t.Errorf("%q: %+v, want %d %q %q", args, r, code, out, errOut)
		}
	}
	check(0, "7\n", "", "wait", "old")
	check(0, "exited 7 false\n", "", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.HostConfig.AutoRemove}}", "old")
	check(0, "old\n", "", "stop", "old")
	check(1, "", "cannot kill sandbox: old: sandbox old is not running", "kill", "old")
	check(1, "", "sandbox old is not running", "port", "old")
	check(1, "", "sandbox old is not running", "exec", "old", "true")
	check(0, "", "", "rename", "old", "older")
	check(1, "", "Invalid container name (x y)", "rename", "older", "x y")
	check(1, "", `The name "/web" is already in use`, "rename", "older", "web")
	check(1, "", "Renaming a sandbox with the same name as its current name", "rename", "web", "web")
	check(0, "", "", "rename", "web", "www")
	check(0, "www\n", "", "kill", "-s", "hup", "www")
	check(125, "", "invalid signal: NONE", "kill", "-s", "NONE", "www")
	if !slices.Equal(f.signals, []syscall.Signal{syscall.SIGHUP}) {
		t.Error(f.signals)
	}
	check(1, "", "sandbox is running: stop the sandbox before removing", "rm", "www")
	check(1, "older\n", "No such sandbox: nope", "rm", "older", "nope")
	check(0, "nope\n", "No such sandbox: nope", "rm", "-f", "nope")
	startEnded(t, dir, "a1", 0)
	startEnded(t, dir, "a2", 0)
	check(0, "Total reclaimed space: 0B\n", "", "prune", "-f", "--filter", "until=1h")
	check(0, "Total reclaimed space: 0B\n", "", "prune", "-f", "--filter", "label=none")
	if r := invoke(t, dir, nil, "prune", "-f"); r.code != 0 || strings.Count(r.out, "\n") != 5 || !strings.HasPrefix(r.out, "Deleted Sandboxes:\n") {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "ps", "-aq"); r.out != f.entry.ID()[:12]+"\n" {
		t.Errorf("%+v", r)
	}
}

// TestPruneAsks: anything but yes leaves everything.
func TestPruneAsks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	startEnded(t, dir, "old", 0)
	for answer, want := range map[string]int{"n\n": 1, "": 1, "y\n": 0} {
		file := filepath.Join(t.TempDir(), "answer")
		if err := os.WriteFile(file, []byte(answer), 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		var out, errOut bytes.Buffer
		p := program{stdin: in, stdout: &out, stderr: &errOut, stateDir: dir}
		if code := p.main(t.Context(), []string{"prune"}); code != want || !strings.HasPrefix(out.String(), "WARNING!") {
			t.Errorf("%q: %d %s%s", answer, code, &out, &errOut)
		}
	}
}

func TestPort(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	f, _ := start(t, dir, "web")
	f.ports = []api.Port{
		{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
		{Proto: "tcp", HostIP: netip.IPv6Unspecified(), HostPort: 8080, GuestPort: 80},
		{Proto: "udp", HostIP: netip.IPv4Unspecified(), HostPort: 53, GuestPort: 53},
	}
	for args, want := range map[string]string{
		"port web":           "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n53/udp -> 0.0.0.0:53\n",
		"port ls web":        "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n53/udp -> 0.0.0.0:53\n",
		"port web 80":        "0.0.0.0:8080\n[::]:8080\n",
		"port web 80/tcp":    "0.0.0.0:8080\n[::]:8080\n",
		"port ls web 53/udp": "0.0.0.0:53\n",
	} {
		if r := invoke(t, dir, nil, strings.Fields(args)...); r.code != 0 || r.out != want {
			t.Errorf("%s: %+v, want %q", args, r, want)
		}
	}
	if r := invoke(t, dir, nil, "port", "web", "80", "81"); r.code != 125 || !strings.Contains(r.errOut, "at most 2 arguments") {
		t.Errorf("%+v", r)
	}
}

// TestInspectFormat: the names are those of the JSON output, and one that does not exist is an error.
func TestInspectFormat(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	f, _ := start(t, dir, "web")
	f.ports = []api.Port{{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80}}
	for format, want := range map[string]string{
		"{{.Id}}":                           f.entry.ID(),
		"{{.State.Running}} {{.State.Pid}}": "true 4711",
		"{{.NetworkSettings.IPAddress}} {{.NetworkSettings.Networks.bridge.Gateway}}": "10.0.2.100 10.0.2.2",
		`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`:              "8080",
		"{{json .Config.Cmd}}":                    `["python3","-m","http.server","80"]`,
		`{{range $p, $b := .Ports}}{{$p}}{{end}}`: "80/tcp",
		"{{.Counters.tcp}}":                       "",
	} {
		r := invoke(t, dir, nil, "inspect", "-f", format, "web")
		if want == "" {
			if r.code != 125 || !strings.Contains(r.errOut, `map has no entry for key "tcp"`) {
				t.Errorf("%s: %+v", format, r)
			}
		} else if r.code != 0 || r.out != want+"\n" {
			t.Errorf("%s: %+v, want %q", format, r, want)
		}
	}
}

func TestStatsOfAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	start(t, dir, "web")
	startEnded(t, dir, "old", 0)
	for args, want := range map[string]string{
		"stats --no-stream --format {{.Name}}|{{.NetIO}}|{{.PIDs}}": "web|1.235MB / 1kB|0\n",
		"stats --no-stream -a --format {{.Name}}|{{.NetIO}}":        "old|--\nweb|1.235MB / 1kB\n",
		"stats --no-stream --format {{.Name}} web":                  "web\n",
	} {
		if r := invoke(t, dir, nil, strings.Fields(args)...); r.code != 0 || r.out != want {
			t.Errorf("%s: %+v, want %q", args, r, want)
		}
	}
	if r := invoke(t, dir, nil, "stats", "--no-stream"); !strings.HasPrefix(r.out, "SANDBOX ID") || !strings.Contains(r.out, "0.00%") || strings.Count(r.out, "\n") != 2 {
		t.Errorf("%+v", r)
	}
	if r := invoke(t, dir, nil, "stats", "--no-stream", "nope"); r.code != 1 || r.errOut != "rootless-net: No such sandbox: nope\n" {
		t.Errorf("%+v", r)
	}
	// The stream repeats the table until it is stopped.
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	p := program{stdin: os.Stdin, stdout: &out, stderr: &out, stateDir: dir}
	if code := p.main(ctx, []string{"stats", "--format", "{{.Name}}"}); code != 0 || strings.Count(out.String(), "web\n") < 2 {
		t.Errorf("%d %s", code, &out)
	}
}

// syncBuffer is a bytes.Buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestEvents(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	old := startEnded(t, dir, "old", 7)
	r := invoke(t, dir, nil, "events", "--since", "1h", "--until", "0s")
	for _, want := range []string{"container create " + old.ID + " (name=old, tier=front)\n", "container start " + old.ID, "container die " + old.ID + " (exitCode=7, name=old, tier=front)\n"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("%+v has no %q", r, want)
		}
	}
	if r := invoke(t, dir, nil, "events", "--since", "1h", "--until", "0s", "-f", "event=die", "-f", "container=old", "--format", "{{.Action}} {{.Actor.Attributes.exitCode}} {{.Type}}"); r.out != "die 7 container\n" {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &syncBuffer{}
	done := make(chan int)
	go func() {
		p := program{stdin: os.Stdin, stdout: out, stderr: out, stateDir: dir}
		done <- p.main(ctx, []string{"events", "--format", "{{.Action}} {{.Actor.Attributes.name}}"})
	}()
	time.Sleep(200 * time.Millisecond)
	f, _ := start(t, dir, "web")
	if err := f.entry.Update(func(r *state.Record) { r.Status = state.Running }); err != nil {
		t.Fatal(err)
	}
	const want = "create web\nstart web\n"
	for end := time.Now().Add(10 * time.Second); out.String() != want && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != 0 || out.String() != want {
		t.Errorf("%d %q", code, out)
	}
}

func TestReadEnvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\n  A=1 \nB=\"x\"\nHOME\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readEnvFile(file); err != nil || !slices.Equal(got, []string{"A=1 ", `B="x"`, "HOME"}) {
		t.Errorf("%q %v", got, err)
	}
	if err := os.WriteFile(file, []byte("a b=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readEnvFile(file); err == nil {
		t.Error("no error")
	}
}
