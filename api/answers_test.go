package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// checkAnswers has every answer of a handler compared with openapi.yaml. All tests that use serve are checked that way.
func checkAnswers(t *testing.T, handler http.Handler) http.Handler {
	doc := schema(t)
	patterns := newMux(NewServer(newFake(), ServerOptions{}).routes())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		handler.ServeHTTP(rec, r)
		_, pattern := patterns.Handler(r)
		if err := checkAnswer(doc, pattern, rec); err != nil {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
	})
}

// recorder keeps a copy of an answer. It has no status if the connection was taken over.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.body.Write(p)
	return r.ResponseWriter.Write(p)
}

// checkAnswer compares an answer with what openapi.yaml says about the route of that pattern of http.ServeMux.
func checkAnswer(doc *openapi3.T, pattern string, r *recorder) error {
	if r.status == 0 {
		return nil
	}
	method, p, known := strings.Cut(pattern, " ")
	if !known { // the path, or the method of the path, does not exist
		name := "Error"
		if r.status == http.StatusNotFound {
			name = "UnknownPath"
		} else if r.status != http.StatusMethodNotAllowed && r.status != http.StatusForbidden {
			return fmt.Errorf("status %d outside of all operations", r.status)
		}
		return checkBody(doc.Components.Schemas[name], r.body.Bytes())
	}
	response := doc.Paths.Find(p).GetOperation(method).Responses.Status(r.status)
	if response == nil {
		return fmt.Errorf("openapi.yaml lacks status %d", r.status)
	}
	return checkBody(jsonSchema(response.Value.Content), r.body.Bytes())
}

func checkBody(ref *openapi3.SchemaRef, body []byte) error {
	if ref == nil {
		if len(body) > 0 {
			return fmt.Errorf("openapi.yaml has no body, the server sends %q", body)
		}
		return nil
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return err
	}
	return ref.Value.VisitJSON(value, openapi3.EnableJSONSchema2020())
}

// TestEveryStatusOfTheSchema has the server answer every operation with every status that openapi.yaml lists for it.
// checkAnswers compares the answers in the other direction.
func TestEveryStatusOfTheSchema(t *testing.T) {
	large := `{"spec":"` + strings.Repeat("a", maxRequest) + `"}`
	type request struct{ body, path string } // path is that of the operation if empty
	requests := map[string]map[int]request{
		"GET /v1/sandbox":       {200: {}},
		"GET /v1/sandbox/stats": {200: {}},
		"GET /v1/sandbox/ports": {200: {}},
		"POST /v1/sandbox/ports": {
			201: {body: `{"spec":"8080:80"}`}, 400: {body: `{"spec":"bad"}`}, 409: {body: `{"spec":"taken"}`},
			413: {body: large}, 500: {body: `{"spec":"broken"}`},
		},
		"DELETE /v1/sandbox/ports": {
			200: {body: `{"spec":"8080:80"}`}, 400: {body: `{"spec":"bad"}`}, 404: {body: `{"spec":"unknown"}`},
			409: {body: `{"spec":"taken"}`}, 413: {body: large}, 500: {body: `{"spec":"broken"}`},
		},
		"POST /v1/sandbox/lease": {
			101: {body: `{"kind":"exec"}`}, 400: {body: `{"kind":"other"}`}, 409: {body: `{"kind":"exec"}`}, 413: {body: large},
			429: {body: `{"kind":"exec"}`}, 500: {body: `{"kind":"exec"}`},
		},
		"POST /v1/sandbox/kill": {
			200: {body: `{"signal":15}`}, 400: {body: `{"signal":65}`}, 409: {body: `{"signal":15}`}, 413: {body: large}, 500: {body: `{"signal":15}`},
		},
		"POST /v1/sandbox/rename": {
			200: {body: `{"name":"db"}`}, 400: {body: `{"name":"bad"}`}, 409: {body: `{"name":"taken"}`}, 413: {body: large},
			500: {body: `{"name":"broken"}`},
		},
		"GET /v1/info":  {200: {}},
		"GET /v1/ports": {200: {}},
		"POST /v1/ports": {
			201: {body: `{"proto":"tcp","parentPort":8080,"childPort":80}`}, 400: {body: `{}`},
			409: {body: `{"proto":"tcp","parentPort":1,"childPort":80}`}, 413: {body: large},
			500: {body: `{"proto":"tcp","parentPort":2,"childPort":80}`},
		},
		"DELETE /v1/ports/{id}": {
			200: {path: "/v1/ports/4"}, 400: {path: "/v1/ports/x"}, 404: {path: "/v1/ports/5"}, 500: {path: "/v1/ports/" + strconv.Itoa(brokenID)},
		},
	}
	for _, statuses := range requests {
		statuses[403] = request{body: "{}"}
		statuses[503] = request{body: "{}"}
	}
	for name, statuses := range requests {
		method, p, _ := strings.Cut(name, " ")
		var described []int
		for status := range schema(t).Paths.Find(p).GetOperation(method).Responses.Map() {
			n, _ := strconv.Atoi(status)
			described = append(described, n)
		}
		slices.Sort(described)
		if tried := slices.Sorted(maps.Keys(statuses)); !slices.Equal(tried, described) {
			t.Errorf("%s: openapi.yaml has the statuses %v, this test %v", name, described, tried)
		}
		for want, r := range statuses {
			t.Run(name+" "+strconv.Itoa(want), func(t *testing.T) {
				b, opts, ip := newFake(), ServerOptions{}, netip.MustParseAddr("127.0.0.1")
				b.ports = []Port{{Proto: "tcp", HostIP: ip, HostPort: 8084, GuestPort: 84, GuestIP: ip, Auto: true, ID: 4}}
				if want == http.StatusForbidden {
					opts.checkPeer = func(*net.UnixConn) error { return errors.New("another user") }
				}
				socket := filepath.Join(t.TempDir(), "api.sock")
				s, _ := serve(t, b, socket, opts)
				provoke(t, s, b, want)
				if r.path == "" {
					r.path = strings.Replace(p, "{id}", "4", 1)
				}
				status, body := roundTrip(t, socket, method, r.path, r.body)
				if status != want {
					t.Errorf("status %d, want %d: %s", status, want, body)
				}
				// checkAnswers does not see what the server sends on a connection that it has taken over.
				if err := checkAnswer(schema(t), name, &recorder{status: status, body: *bytes.NewBufferString(body)}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// provoke brings the server and its backend into the state for a status that does not depend on the request alone.
func provoke(t *testing.T, s *Server, b *fakeBackend, status int) {
	t.Helper()
	switch status {
	case http.StatusConflict:
		b.refuse = Conflict(errors.New("the sandbox has ended"))
	case http.StatusInternalServerError:
		b.refuse = syscall.EMFILE
	case http.StatusTooManyRequests:
		fillLeases(t, s)
	case http.StatusServiceUnavailable:
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
	}
}

// fillLeases takes all leases that the server allows.
func fillLeases(t *testing.T, s *Server) {
	t.Helper()
	for range maxLeases {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		if err := s.addLease(a); err != nil {
			t.Fatal(err)
		}
	}
}
