package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rootlessnet/internal/nettest/cmdtest"
)

func TestMain(m *testing.M) {
	cmdtest.Main(main)
	os.Exit(m.Run())
}

func start(t *testing.T, stdin string, args ...string) *cmdtest.Process {
	t.Helper()
	return cmdtest.Start(t, "rootlessport", stdin, args...)
}

// document is what Podman writes, with the fields that a test changes. Without mappings the helper opens no port, so it
// needs no namespace of its own.
func document(t *testing.T, change func(fields map[string]any)) string {
	t.Helper()
	fields := map[string]any{
		"Mappings": nil, "NetNSPath": "/proc/self/ns/net", "ExitFD": cmdtest.ExitFD, "ReadyFD": cmdtest.ReadyFD,
		"TmpDir": t.TempDir(), "ChildIP": "10.0.2.100", "ContainerID": "c0ffee", "RootlessCNI": false,
		"ContainerCNI": true, // a field of other versions is ignored
	}
	if change != nil {
		change(fields)
	}
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestVersion(t *testing.T) {
	if r := start(t, "", "--version").Wait(); r.Code != 0 || !strings.HasPrefix(r.Stdout, "rootlessport (rootlessnet) ") {
		t.Errorf("%+v", r)
	}
}

// TestErrors: Podman prints the helper's standard output as the error, and takes exit status 1 for a failure. Nothing is written to the
// ready descriptor before it is closed.
func TestErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	set := func(name string, value any) string {
		return document(t, func(fields map[string]any) { fields[name] = value })
	}
	mapping := func(fields map[string]any) string { return set("Mappings", []any{fields}) }
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"an argument", document(t, nil), []string{"x"}, "too many arguments"},
		{"no document", "", nil, "read the configuration from standard input: EOF"},
		{"no JSON", "x", nil, "read the configuration from standard input: invalid character"},
		{"wrong type", set("ExitFD", "three"), nil, "cannot unmarshal string into Go struct field Config.ExitFD"},
		{"port out of range", mapping(map[string]any{"host_port": 70000, "container_port": 80}), nil, "cannot unmarshal number 70000"},
		{"no namespace", set("NetNSPath", ""), nil, "missing NetNSPath"},
		{"no exit descriptor", set("ExitFD", nil), nil, "missing ExitFD"},
		{"no ready descriptor", set("ReadyFD", nil), nil, "missing ReadyFD"},
		{"closed exit descriptor", set("ExitFD", 99), nil, "descriptor 99, passed by the caller: bad file descriptor"},
		{"closed ready descriptor", set("ReadyFD", 99), nil, "descriptor 99, passed by the caller: bad file descriptor"},
		{"unknown protocol", mapping(map[string]any{"host_port": 8080, "container_port": 80, "protocol": "sctp"}), nil, `unsupported protocol "sctp": only tcp and udp ports can be published`},
		{"no host port", mapping(map[string]any{"container_port": 80}), nil, "invalid port mapping"},
		{"host address", mapping(map[string]any{"host_ip": "host", "host_port": 8080, "container_port": 80}), nil, `invalid host IP address: "host"`},
		{"container's address", set("ChildIP", "box"), nil, `invalid address of the container: "box"`},
		{"container's id", document(t, func(f map[string]any) { f["RootlessCNI"], f["ContainerID"] = true, "../x" }), nil, "name no socket"},
		{"namespace that does not exist", set("NetNSPath", "/nonexistent"), nil, "network namespace: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, c.stdin, c.args...)
			if got := p.WaitReady(); got != "" {
				t.Errorf("ready: %q", got)
			}
			r := p.Wait()
			if r.Code != 1 || !strings.Contains(r.Stdout, c.want) || !strings.HasSuffix(r.Stdout, "\n") || r.Stderr != "" {
				t.Errorf("%+v; want exit status 1 and %q on standard output", r, c.want)
			}
		})
	}
}

// TestReadyThenExit: the helper writes the ready byte. It ends with status 0 and without output when the exit descriptor is closed
// or it receives a signal, and not before.
func TestReadyThenExit(t *testing.T) {
	for name, end := range map[string]func(*cmdtest.Process){
		"exit descriptor": (*cmdtest.Process).CloseExit,
		"SIGTERM":         func(p *cmdtest.Process) { p.Signal(syscall.SIGTERM) },
		"SIGINT":          func(p *cmdtest.Process) { p.Signal(syscall.SIGINT) },
		"SIGHUP":          func(p *cmdtest.Process) { p.Signal(syscall.SIGHUP) },
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, document(t, nil))
			if got := p.WaitReady(); got != "1" {
				t.Fatalf("ready: %q; %+v", got, p.Wait())
			}
			if !p.Running(100 * time.Millisecond) {
				t.Fatalf("ended by itself: %+v", p.Wait())
			}
			end(p)
			if r := p.Wait(); r != (cmdtest.Result{}) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestAddressSocket: with RootlessCNI, Podman writes a new address of the container, as a JSON string, to a packet socket
// of that container, and reads "OK". The helper removes the socket when it ends.
func TestAddressSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "r") // a short path, for the address of a unix socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p := start(t, document(t, func(fields map[string]any) { fields["TmpDir"], fields["RootlessCNI"] = dir, true }))
	if got := p.WaitReady(); got != "1" {
		t.Fatalf("ready: %q; %+v", got, p.Wait())
	}
	path := filepath.Join(dir, "rp", "c0ffee")
	for message, want := range map[string]string{`"10.0.2.101"`: "OK", `"box"`: "invalid address", `{}`: "cannot unmarshal"} {
		c, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, message); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 1000)
		n, err := c.Read(answer)
		if got := string(answer[:n]); err != nil || want == "OK" && got != want || !strings.Contains(got, want) {
			t.Errorf("%s: %q, %v; want %q", message, got, err, want)
		}
		c.Close()
	}
	p.CloseExit()
	if r := p.Wait(); r.Code != 0 || r.Stdout != "" {
		t.Errorf("%+v", r)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestHelpers: without a state directory, and without a sandbox in it, there are no helpers.
func TestHelpers(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(t.TempDir(), "none"))
	if got := helpers(); len(got) != 0 {
		t.Errorf("without a state directory: %v", got)
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	if got := helpers(); len(got) != 0 {
		t.Errorf("with an empty one: %v", got)
	}
}
