package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

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
		status, body := roundTrip(t, socket, c.method, c.path, c.body)
		if status != c.status || body != c.want {
			t.Errorf("%s %s %s: %d %s, want %d %s", c.method, c.path, c.body, status, body, c.status, c.want)
		}
	}
}

func TestRootlessKitInfo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	serve(t, newFake(), socket, ServerOptions{})
	status, body := roundTrip(t, socket, "GET", "/v1/info", "")
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

// TestRootlessKitClient uses the part of the client that rootlessport uses.
func TestRootlessKitClient(t *testing.T) {
	_, c := serve(t, newFake(), "", ServerOptions{})
	ctx := t.Context()
	if err := c.Reachable(ctx); err != nil {
		t.Error(err)
	}
	if info, err := c.RootlessKitInfo(ctx); err != nil || info.NetworkDriver.ChildIP.String() != "10.0.2.100" {
		t.Errorf("%+v %v", info, err)
	}
	spec := RootlessKitPortSpec{Proto: "tcp", ParentPort: 8080, ChildPort: 80}
	added, err := c.AddRootlessKitPort(ctx, spec)
	if err != nil || added != (RootlessKitPortStatus{1, spec}) {
		t.Errorf("%+v %v", added, err)
	}
	if ports, err := c.RootlessKitPorts(ctx); err != nil || len(ports) != 1 || ports[0] != added {
		t.Errorf("%+v %v", ports, err)
	}
	if err := c.RemoveRootlessKitPort(ctx, added.ID); err != nil {
		t.Error(err)
	}
	var e *Error
	if err := c.RemoveRootlessKitPort(ctx, added.ID); !errors.As(err, &e) || e.Status != http.StatusNotFound || e.Message != "no such id" {
		t.Errorf("%+v", err)
	}
	if err := NewClient(filepath.Join(t.TempDir(), "none.sock")).Reachable(ctx); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
