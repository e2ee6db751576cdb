package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// v1 asks as RootlessKit's own clients do, and returns the status and the body.
func v1(t *testing.T, socket, method, path, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://rootlesskit"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}

func TestRootlessKitPorts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	serve(t, newFake(), socket, ServerOptions{})
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/ports", "", 200, `[]`},
		{"POST", "/v1/ports", `{"proto":"tcp","parentPort":8080,"childPort":80,"later":true}`, 201,
			`{"id":1,"spec":{"proto":"tcp","parentPort":8080,"childPort":80}}`},
		{"POST", "/v1/ports", `{"proto":"udp4","parentPort":53,"childIP":"10.0.2.100","childPort":53}`, 201,
			`{"id":3,"spec":{"proto":"udp4","parentPort":53,"childIP":"10.0.2.100","childPort":53}}`},
		{"GET", "/v1/ports", "", 200, `[{"id":1,"spec":{"proto":"tcp","parentPort":8080,"childPort":80}},` +
			`{"id":3,"spec":{"proto":"udp","parentIP":"0.0.0.0","parentPort":53,"childIP":"10.0.2.100","childPort":53}}]`},
		{"DELETE", "/v1/ports/1", "", 200, ``},
		{"DELETE", "/v1/ports/1", "", 404, `{"message":"no such id"}`},
		{"DELETE", "/v1/ports/x", "", 400, `{"message":"invalid id: \"x\""}`},
		{"POST", "/v1/ports", `{"proto":"tcp","parentPort":1,"childPort":80}`, 409, `{"message":"port is taken"}`},
		{"POST", "/v1/ports", `{"proto":"sctp","parentPort":8080,"childPort":80}`, 400, `{"message":"unsupported proto: sctp"}`},
		{"POST", "/v1/ports", `{"proto":"tcp","parentPort":0,"childPort":80}`, 400, `{"message":"invalid parentPort: 0"}`},
		{"POST", "/v1/ports", `{"proto":"tcp","parentPort":80,"childPort":65536}`, 400, `{"message":"invalid childPort: 65536"}`},
		{"POST", "/v1/ports", `{"proto":"tcp6","parentIP":"127.0.0.1","parentPort":80,"childPort":80}`, 400,
			`{"message":"parentIP is not of the family of tcp6: 127.0.0.1"}`},
		{"POST", "/v1/ports", `{"proto":"tcp","parentPort":80,"childIP":"127.0.0.1","childPort":80}`, 400,
			`{"message":"childIP cannot be a loopback address: 127.0.0.1"}`},
		{"POST", "/v1/ports", `{`, 400, `{"message":"invalid port spec: unexpected EOF"}`},
		{"PUT", "/v1/ports", `{}`, 405, `{"message":"method not allowed"}`},
		{"GET", "/v1/unknown", "", 404, `{"message":"page not found: /v1/unknown (versions of this API: v1)","versions":["v1"]}`},
	} {
		status, body := v1(t, socket, c.method, c.path, c.body)
		if status != c.status || body != c.want {
			t.Errorf("%s %s %s: %d %s, want %d %s", c.method, c.path, c.body, status, body, c.status, c.want)
		}
	}
}

func TestRootlessKitInfo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	serve(t, newFake(), socket, ServerOptions{})
	status, body := v1(t, socket, "GET", "/v1/info", "")
	var info struct {
		APIVersion string
		PortDriver struct {
			Driver                  string
			Protos                  []string
			DisallowLoopbackChildIP bool
		}
	}
	if err := json.Unmarshal([]byte(body), &info); err != nil || status != 200 || info.APIVersion != "1.1.1" ||
		len(info.PortDriver.Protos) != 6 || !info.PortDriver.DisallowLoopbackChildIP {
		t.Errorf("%d %s: %v", status, body, err)
	}
}

func TestSecondSocket(t *testing.T) {
	s, _ := serve(t, newFake(), "", ServerOptions{})
	path := filepath.Join(t.TempDir(), "more.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // what a server that was killed leaves behind
	if err := s.Listen(path, true); err != nil {
		t.Fatal(err)
	}
	if status, _ := v1(t, path, "GET", "/v1/ports", ""); status != 200 {
		t.Errorf("status %d", status)
	}
	s.Close()
	if left, _ := filepath.Glob(path); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}

// TestServerBelow: a helper that runs in a user namespace hears its user from outside.
func TestServerBelow(t *testing.T) {
	if text, err := os.ReadFile("/proc/self/uid_map"); err != nil || !mapsAll(text) {
		t.Skip("not in the first user namespace")
	}
	path := filepath.Join(t.TempDir(), "api.sock")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "API_TEST_SERVER="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("cannot make a user namespace:", err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("the server said %q, %v", line, err)
	}
	c := NewClient(path)
	defer c.Close()
	if _, err := c.Inspect(t.Context()); err != nil {
		t.Error(err)
	}
}
