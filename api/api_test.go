package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be a peer in another user namespace, or of another user.
func TestMain(m *testing.M) {
	if path := os.Getenv("API_TEST_SERVER"); path != "" {
		s := NewServer(newFake(), ServerOptions{})
		fmt.Println(s.Listen(path, true))
		io.Copy(io.Discard, os.Stdin)
		s.Close()
		os.Exit(0)
	}
	if path := os.Getenv("API_TEST_PEER"); path != "" {
		if os.Getenv("API_TEST_UNDUMPABLE") != "" {
			unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		}
		_, err := NewClient(path).Inspect(context.Background())
		fmt.Print(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type fakeBackend struct {
	mu     sync.Mutex
	ports  []Port
	leases map[LeaseKind]int
	ended  bool
	gone   chan LeaseKind
}

func newFake() *fakeBackend {
	return &fakeBackend{leases: make(map[LeaseKind]int), gone: make(chan LeaseKind, 16)}
}

func (b *fakeBackend) Inspect() Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Sandbox{ID: strings.Repeat("ab", 32), Name: "web", Ports: b.ports, Members: b.leases[LeaseMember]}
}

func (b *fakeBackend) Stats() Stats {
	return Stats{RxBytes: 7, Counters: map[string]uint64{"tcp.accepted": 3}}
}

func (b *fakeBackend) Ports() []Port {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ports
}

func (b *fakeBackend) AddPorts(_ context.Context, spec string) ([]Port, error) {
	switch spec {
	case "bad":
		return nil, fmt.Errorf("wrapped: %w", Invalid(errors.New("invalid containerPort: bad")))
	case "broken":
		return nil, syscall.EMFILE
	}
	p := Port{Proto: "tcp", HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 8080, GuestPort: 80}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ports = append(b.ports, p)
	return []Port{p}, nil
}

func (b *fakeBackend) AddMapping(_ context.Context, m Mapping) ([]Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.HostPort == 1 {
		return nil, Conflict(errors.New("port is taken"))
	}
	p := Port{Proto: m.Proto, HostIP: m.HostIP, HostPort: m.HostPort, GuestIP: m.GuestIP, GuestPort: m.GuestPort, ID: len(b.ports) + 1}
	list := []Port{p}
	if !m.HostIP.IsValid() {
		list = []Port{p, p}
		list[0].HostIP, list[1].HostIP = netip.IPv4Unspecified(), netip.IPv6Unspecified()
	}
	b.ports = append(b.ports, list...)
	return list, nil
}

func (b *fakeBackend) RemoveMapping(_ context.Context, id int) ([]Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.ports)
	b.ports = slices.DeleteFunc(b.ports, func(p Port) bool { return p.ID == id })
	if len(b.ports) == before {
		return nil, NotFound(errors.New("no such id"))
	}
	return []Port{{ID: id}}, nil
}

func (b *fakeBackend) RemovePorts(context.Context, string) ([]Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	removed := b.ports
	b.ports = nil
	return removed, nil
}

func (b *fakeBackend) Lease(kind LeaseKind) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, errEnded
	}
	b.leases[kind]++
	return func() {
		b.mu.Lock()
		b.leases[kind]--
		b.mu.Unlock()
		b.gone <- kind
	}, nil
}

func serve(t *testing.T, b Backend, path string, opts ServerOptions) (*Server, *Client) {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "api.sock")
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(b, opts)
	s.Serve(l)
	c := NewClient(path)
	t.Cleanup(func() { c.Close(); s.Close() })
	return s, c
}

func TestAskAndChange(t *testing.T) {
	_, c := serve(t, newFake(), "", ServerOptions{})
	ctx := t.Context()
	box, err := c.Inspect(ctx)
	if err != nil || box.Name != "web" || len(box.Ports) != 0 {
		t.Fatalf("%+v %v", box, err)
	}
	stats, err := c.Stats(ctx)
	if err != nil || stats.RxBytes != 7 || stats.Counters["tcp.accepted"] != 3 {
		t.Errorf("%+v %v", stats, err)
	}
	if ports, err := c.Ports(ctx); err != nil || ports == nil || len(ports) != 0 {
		t.Errorf("%v %v", ports, err)
	}
	added, err := c.AddPorts(ctx, "8080:80")
	if err != nil || len(added) != 1 || added[0].String() != "0.0.0.0:8080->80/tcp" {
		t.Errorf("%v %v", added, err)
	}
	if removed, err := c.RemovePorts(ctx, "8080:80"); err != nil || len(removed) != 1 || removed[0] != added[0] {
		t.Errorf("%v %v", removed, err)
	}
	var e *Error
	if _, err := c.AddPorts(ctx, "bad"); !errors.As(err, &e) || e.Status != 400 || e.Message != "wrapped: invalid containerPort: bad" {
		t.Errorf("%+v", err)
	}
	if _, err := c.AddPorts(ctx, "broken"); !errors.As(err, &e) || e.Status != 500 {
		t.Errorf("%+v", err)
	}
}

func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, c := serve(t, newFake(), filepath.Join(dir, "api.sock"), ServerOptions{})
	if _, err := c.Inspect(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLeaseEndsWithItsConnection(t *testing.T) {
	b := newFake()
	_, c := serve(t, b, "", ServerOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	l, err := c.Lease(ctx, LeaseMember)
	if err != nil {
		t.Fatal(err)
	}
	cancel() // of the asking: the lease stays
	if box, err := c.Inspect(t.Context()); err != nil || box.Members != 1 {
		t.Errorf("%+v %v", box, err)
	}
	select {
	case <-l.Done():
		t.Error("lease ended with the context of its request")
	case <-time.After(50 * time.Millisecond):
	}
	l.Close()
	l.Close()
	if kind := receive(t, b.gone); kind != LeaseMember {
		t.Error(kind)
	}
	if box, err := c.Inspect(t.Context()); err != nil || box.Members != 0 {
		t.Errorf("%+v %v", box, err)
	}
}

func TestLeaseEndsWithTheServer(t *testing.T) {
	b := newFake()
	s, c := serve(t, b, "", ServerOptions{})
	l, err := c.Lease(t.Context(), LeaseExec)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	receive(t, l.Done())
	receive(t, b.gone)
	if _, err := c.Inspect(t.Context()); err == nil {
		t.Error("a closed server answers")
	}
}

func TestLeaseRefused(t *testing.T) {
	b := newFake()
	_, c := serve(t, b, "", ServerOptions{})
	if _, err := c.Lease(t.Context(), "other"); err == nil || err.Error() != "invalid lease kind: other" {
		t.Error(err)
	}
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	var e *Error
	if _, err := c.Lease(t.Context(), LeaseMember); !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable {
		t.Error(err)
	}
}

func TestLeasesAreCapped(t *testing.T) {
	s := &Server{leases: make(map[net.Conn]struct{})}
	for range maxLeases {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		if err := s.addLease(a); err != nil {
			t.Fatal(err)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	e := s.addLease(a)
	if e == nil || e.Status != http.StatusTooManyRequests {
		t.Fatal(e)
	}
	var wire bytes.Buffer
	done := make(chan struct{})
	go func() { io.Copy(&wire, b); close(done) }()
	writeError(a, e)
	a.Close()
	<-done
	if !strings.Contains(wire.String(), "429") || !strings.Contains(wire.String(), `{"message":"too many leases"}`) {
		t.Error(wire.String())
	}
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(5 * time.Second):
		t.Fatal("nothing within 5 s")
		panic("unreachable")
	}
}

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

func TestRefusedPeer(t *testing.T) {
	_, c := serve(t, newFake(), "", ServerOptions{checkPeer: func(*net.UnixConn) error { return errors.New("not you") }})
	var e *Error
	if _, err := c.Inspect(t.Context()); !errors.As(err, &e) || e.Status != 403 || e.Message != "permission denied: not you" {
		t.Error(err)
	}
	if _, err := c.Lease(t.Context(), LeaseExec); !errors.As(err, &e) || e.Status != 403 {
		t.Error(err)
	}
}

// TestPeerInASandbox is what a command inside would try: the same uid of the host, another user namespace.
func TestPeerInASandbox(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "api.sock")
	serve(t, newFake(), path, ServerOptions{})
	inside := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	keepID := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}}
	for name, attr := range map[string]*syscall.SysProcAttr{
		"user namespace":         inside,
		"user namespace, hidden": inside,
		"same ids":               keepID,
		"same ids, hidden":       keepID,
		"other user":             {Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
	} {
		t.Run(name, func(t *testing.T) {
			self := "/proc/self/exe"
			if attr.Credential != nil {
				if os.Getuid() != 0 {
					t.Skip("needs root to become another user")
				}
				// The socket's directory must let the other user in for the server to be asked at all.
				openUp(t, dir, path)
				self = copySelf(t, dir)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), "API_TEST_PEER="+path)
			if strings.HasSuffix(name, ", hidden") {
				cmd.Env = append(cmd.Env, "API_TEST_UNDUMPABLE=1")
			}
			cmd.SysProcAttr = attr
			out, err := cmd.CombinedOutput()
			if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENOSPC) {
				if os.Getenv("ROOTLESSNET_CI") == "1" {
					t.Fatal(err)
				}
				t.Skip("cannot make a user namespace:", err)
			}
			if err != nil || !strings.HasPrefix(string(out), "permission denied: ") {
				t.Errorf("%q %v", out, err)
			}
		})
	}
}

// TestUndumpablePeer is a launcher that has confined itself already.
func TestUndumpablePeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	serve(t, newFake(), path, ServerOptions{})
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "API_TEST_PEER="+path, "API_TEST_UNDUMPABLE=1")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "<nil>" {
		t.Errorf("%s %v", out, err)
	}
}

func openUp(t *testing.T, dir, socket string) {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
}

func copySelf(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "self")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
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
