package rootlessport

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rootlessnet/api"
	"rootlessnet/internal/nettest"
)

// fakeEngine answers as the control socket of a helper does.
type fakeEngine struct {
	path string
	http *http.Server

	mu   sync.Mutex
	next int
	open map[int]api.RootlessKitPortSpec
	busy int // how many further requests for a port are refused
}

func startEngine(t *testing.T) *fakeEngine {
	t.Helper()
	e := &fakeEngine{path: filepath.Join(t.TempDir(), "api.sock"), open: map[int]api.RootlessKitPortSpec{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/ports", func(w http.ResponseWriter, r *http.Request) {
		var s api.RootlessKitPortSpec
		_ = json.NewDecoder(r.Body).Decode(&s)
		e.mu.Lock()
		defer e.mu.Unlock()
		if s.ParentPort == 666 || e.busy > 0 {
			e.busy--
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"message":"port is already allocated"}`)
			return
		}
		e.next++
		e.open[e.next] = s
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"id":%d}`, e.next)
	})
	mux.HandleFunc("DELETE /v1/ports/{id}", func(w http.ResponseWriter, r *http.Request) {
		var id int
		_, _ = fmt.Sscan(r.PathValue("id"), &id)
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.open, id)
	})
	l, err := net.Listen("unix", e.path)
	if err != nil {
		t.Fatal(err)
	}
	e.http = &http.Server{Handler: mux}
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.http.Serve(l) })
	t.Cleanup(func() { e.http.Close(); wg.Wait() })
	return e
}

func (e *fakeEngine) children() (list []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.open {
		list = append(list, fmt.Sprintf("%s %s:%d -> %s:%d", s.Proto, s.ParentIP, s.ParentPort, s.ChildIP, s.ChildPort))
	}
	return list
}

// TestEngine: the engine opens the ports, forwards them to another address, opens them again through the next helper, which
// refuses at first as it does while the previous helper still holds the ports, and closes them.
func TestEngine(t *testing.T) {
	nettest.CheckLeaks(t)
	first, second := startEngine(t), startEngine(t)
	second.busy = 1
	ports := []Port{{Proto: "tcp", HostPort: 8080, ChildPort: 80}}
	var there atomic.Pointer[fakeEngine]
	there.Store(first)
	e, err := newEngine(func() string { return there.Load().path }, first.path, ports, netip.MustParseAddr("10.89.0.2"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	expect := func(in *fakeEngine, want string) {
		t.Helper()
		if got := strings.Join(in.children(), ", "); got != want {
			t.Errorf("open: %q, want %q", got, want)
		}
	}
	expect(first, "tcp :8080 -> 10.89.0.2:80")
	if err := e.setChild(netip.MustParseAddr("10.89.0.9")); err != nil {
		t.Fatal(err)
	}
	expect(first, "tcp :8080 -> 10.89.0.9:80")
	there.Store(second)
	first.http.Close()
	deadline := time.Now().Add(10 * checkInterval)
	for len(second.children()) == 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	expect(second, "tcp :8080 -> 10.89.0.9:80")
	e.close()
	expect(second, "")
}

// TestEngineNewNamespace: after Podman has replaced the namespace of its bridges, and with it the helper, it sends the
// container's address. The engine opens the ports through the new helper at once, without waiting for checkInterval.
func TestEngineNewNamespace(t *testing.T) {
	nettest.CheckLeaks(t)
	first, second := startEngine(t), startEngine(t)
	ports := []Port{{Proto: "tcp", HostPort: 8080, ChildPort: 80}}
	there := first.path
	e, err := newEngine(func() string { return there }, first.path, ports, netip.MustParseAddr("10.89.0.2"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	e.change.Lock()
	there = second.path
	first.http.Close()
	e.change.Unlock()
	if err := e.setChild(netip.MustParseAddr("10.89.0.3")); err != nil {
		t.Error(err)
	}
	if got := strings.Join(second.children(), ", "); got != "tcp :8080 -> 10.89.0.3:80" {
		t.Errorf("open: %q", got)
	}
}

// TestEngineAllOrNone: if a port cannot be opened, the engine closes those it has opened before.
func TestEngineAllOrNone(t *testing.T) {
	nettest.CheckLeaks(t)
	fake := startEngine(t)
	ports := []Port{{Proto: "tcp", HostPort: 8080, ChildPort: 80}, {Proto: "tcp", HostPort: 666, ChildPort: 80}}
	_, err := newEngine(nil, fake.path, ports, netip.Addr{}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("error %v", err)
	}
	if n := len(fake.children()); n != 0 {
		t.Errorf("%d ports are still open", n)
	}
}
