package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

func TestStrictRequests(t *testing.T) {
	s, _ := serve(t, newFake(), "", ServerOptions{})
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/sandbox/ports", `{"spec":"1:1"}`, 201},
		{"DELETE", "/v1/sandbox/ports", `{"spec":"1:1"}`, 200},
		{"POST", "/v1/sandbox/ports", `{"spec":"1:1","x":1}`, 400},
		{"POST", "/v1/sandbox/ports", `{"spec":"1:1"}{}`, 400},
		{"POST", "/v1/sandbox/ports", `{"spec":1}`, 400},
		{"POST", "/v1/sandbox/ports", ``, 400},
		{"POST", "/v1/sandbox/ports", `{"spec":"` + strings.Repeat("a", maxRequest) + `"}`, 413},
		{"POST", "/v1/sandbox/ports", `{"spec":"a"}` + strings.Repeat(" ", maxRequest), 413},
		{"GET", "/v2/info", ``, 404},
		{"GET", "/sandbox", ``, 404},
		{"GET", "/v1/sandbox/unknown", ``, 404},
		{"GET", "/", ``, 404},
		{"PUT", "/v1/sandbox", ``, 405},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		s.http.Handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{})))
		if w.Code != c.status {
			t.Errorf("%s %s %.40s: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, httptest.NewRequest("GET", "/v1/sandbox", nil))
	if w.Code != http.StatusForbidden {
		t.Error("a request without a peer:", w.Code)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"spec":"80:80"}`, `{"kind":"exec"}`, `{}`, `null`, `[]`, `{"spec":"a"} x`, `{"spec":"a","spec":"b"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r := http.MaxBytesReader(nil, io.NopCloser(bytes.NewReader(body)), maxRequest)
		var req PortRequest
		err := decode(r, &req)
		var e *Error
		switch {
		case err != nil && !errors.As(err, &e):
			t.Fatalf("%q: %v has no status", body, err)
		case err != nil && (e.Status < 400 || e.Status > 499):
			t.Fatalf("%q: status %d", body, e.Status)
		case err == nil && req.Spec != "" && !bytes.Contains(body, []byte(`"`)):
			t.Fatalf("%q gave %+v", body, req)
		}
	})
}

func TestSecondSocket(t *testing.T) {
	s, _ := serve(t, newFake(), "", ServerOptions{})
	path := filepath.Join(t.TempDir(), "more.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // leaves the file, as a killed server does
	if err := s.Listen(path, true); err != nil {
		t.Fatal(err)
	}
	if status, _ := roundTrip(t, path, "GET", "/v1/ports", ""); status != 200 {
		t.Errorf("status %d", status)
	}
	s.Close()
	if left, _ := filepath.Glob(path); len(left) > 0 {
		t.Errorf("%v was not removed", left)
	}
}
