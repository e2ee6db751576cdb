package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary run as a client in another user namespace or of another user, or as a server.
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

// brokenID is the ID of a mapping that the fake fails to remove.
const brokenID = 999

// fakeBackend is a Backend without a sandbox.
type fakeBackend struct {
	mu     sync.Mutex
	ports  []Port
	leases map[LeaseKind]int
	refuse error          // of leases
	gone   chan LeaseKind // receives the kind of each lease that was released
}

func newFake() *fakeBackend {
	return &fakeBackend{leases: make(map[LeaseKind]int), gone: make(chan LeaseKind, 16)}
}

func (b *fakeBackend) Inspect() Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	code := 7
	return Sandbox{
		ID: strings.Repeat("ab", 32), Name: "web", Created: time.Now(), Status: StatusLingering, Supervisor: Process{PID: 9, StartTime: 1},
		InitPID: 10, ExitCode: &code, Network: "bridge", Hostname: "web", NetNS: 4026532281,
		Interface: "eth0", Link: "tap", Datapath: "splice", MAC: "02:42:0a:00:02:64", MTU: 65520,
		Subnets:   []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd52:6e65:7400::/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd52:6e65:7400::2")},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd52:6e65:7400::100")},
		Ports:     b.ports, Members: b.leases[LeaseMember], PublishAll: true, HostLoopback: "80,81",
		DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, StateDir: "/run/user/1000/rootless-run/abababababab",
	}
}

func (b *fakeBackend) Stats() Stats {
	return Stats{RxBytes: 7, Counters: map[string]uint64{"tcp.accepted": 3}}
}

func (b *fakeBackend) Ports() []Port {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ports
}

// failure is the error that the fake returns for some specs.
func failure(spec string) error {
	switch spec {
	case "bad":
		return fmt.Errorf("wrapped: %w", Invalid(errors.New("invalid containerPort: bad")))
	case "unknown":
		return NotFound(errors.New("port is not published: 80/tcp"))
	case "taken":
		return Conflict(errors.New("port is already allocated"))
	case "broken":
		return syscall.EMFILE
	}
	return nil
}

func (b *fakeBackend) AddPorts(_ context.Context, spec string) ([]Port, error) {
	if err := failure(spec); err != nil {
		return nil, err
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
	switch m.HostPort {
	case 1:
		return nil, Conflict(errors.New("port is taken"))
	case 2:
		return nil, nil // a backend with a mistake
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
	if id == brokenID {
		return nil, syscall.EMFILE
	}
	before := len(b.ports)
	b.ports = slices.DeleteFunc(b.ports, func(p Port) bool { return p.ID == id })
	if len(b.ports) == before {
		return nil, NotFound(errors.New("no such id"))
	}
	return []Port{{ID: id}}, nil
}

func (b *fakeBackend) RemovePorts(_ context.Context, spec string) ([]Port, error) {
	if err := failure(spec); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	removed := b.ports
	b.ports = nil
	return removed, nil
}

func (b *fakeBackend) Kill(syscall.Signal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refuse
}

func (b *fakeBackend) Rename(name string) error { return failure(name) }

func (b *fakeBackend) Lease(kind LeaseKind) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse != nil {
		return nil, b.refuse
	}
	b.leases[kind]++
	return func() {
		b.mu.Lock()
		b.leases[kind]--
		b.mu.Unlock()
		b.gone <- kind
	}, nil
}

// serve starts a server at path, or in a temporary directory if path is empty, and compares all its answers with
// openapi.yaml.
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
	s.http.Handler = checkAnswers(t, s.http.Handler)
	s.Serve(l)
	c := NewClient(path)
	t.Cleanup(func() { c.Close(); s.Close() })
	return s, c
}

// receive waits for a value, or for the channel to be closed.
func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(5 * time.Second):
		t.Fatal("nothing received within 5 s")
		panic("unreachable")
	}
}

// roundTrip sends one request to the socket, on a connection of its own, and returns the status and the body of the answer.
func roundTrip(t *testing.T, socket, method, path, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://rootlesskit"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp.StatusCode, "" // the body is the connection, which stays open
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}
