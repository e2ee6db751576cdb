package slirp

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeForwarder is a Forwarder in memory; opening host port 666 fails.
type fakeForwarder struct{ open []Forward }

func (f *fakeForwarder) Add(p Forward) error {
	if p.HostPort == 666 || slices.Contains(f.open, p) {
		return errors.New("address already in use")
	}
	f.open = append(f.open, p)
	return nil
}

func (f *fakeForwarder) Remove(p Forward) error {
	if i := slices.Index(f.open, p); i >= 0 {
		f.open = slices.Delete(f.open, i, i+1)
		return nil
	}
	return errors.New("not open")
}

func startAPI(t *testing.T) (path string, fwd *fakeForwarder) {
	t.Helper()
	path, fwd = filepath.Join(t.TempDir(), "api"), new(fakeForwarder)
	a, err := Listen(path, netip.MustParseAddr("10.0.2.100"), fwd, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is still there after Close")
		}
	})
	return path, fwd
}

// exchange sends a request and returns the reply. With shut it ends its side of the stream after the request.
func exchange(t *testing.T, path, request string, shut bool) string {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	if shut {
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%.80s: %v", request, err)
	}
	return string(reply)
}

// TestAPIReplies: the reply to each request is that of the original, byte for byte.
func TestAPIReplies(t *testing.T) {
	path, fwd := startAPI(t)
	bad := func(desc string) string { return `{"error":{"desc":"bad request: ` + desc + `"}}` }
	add := func(arguments string) string { return `{"execute":"add_hostfwd","arguments":{` + arguments + `}}` }
	for _, c := range []struct{ request, reply string }{
		{``, bad("cannot parse JSON")},
		{`x`, bad("cannot parse JSON")},
		{`{"execute":`, bad("cannot parse JSON")},
		{`[1]`, bad("json_object() failed")},
		{`{}`, bad("no execute found")},
		{`{"execute":3}`, bad("no execute found")},
		{`{"execute":"foo"}`, bad("unknown execute")},
		{`{"execute":"list_hostfwd"}`, `{"return":{"entries":[]},"entries":[]}`},
		{`{"execute":"add_hostfwd"}`, bad("add_hostfwd: bad arguments.proto")}, // the original crashes
		{`{"execute":"add_hostfwd","arguments":[]}`, bad("add_hostfwd: bad arguments.proto")},
		{add(`"proto":"sctp","host_addr":"x"`), bad("add_hostfwd: bad arguments.proto")},
		{add(`"proto":"tcp"`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto":"tcp","host_addr":"x"`), bad("add_hostfwd: bad arguments.host_addr")},
		{add(`"proto":"tcp","host_addr":"::1","host_port":1,"guest_port":1`), bad("add_hostfwd: bad arguments.host_addr")},
		{add(`"proto":"tcp","host_port":0`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto":"tcp","host_port":"80"`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto":"tcp","host_port":70000,"guest_port":1`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto":"tcp","host_port":1,"guest_addr":"zz","guest_port":80`), bad("add_hostfwd: bad arguments.guest_addr")},
		{add(`"proto":"tcp","host_port":1,"guest_port":0`), bad("add_hostfwd: bad arguments.guest_port")},
		{add(`"proto":"tcp","host_port":666,"guest_port":1`), bad("add_hostfwd: slirp_add_hostfwd failed")},
		{add(`"proto":"tcp","host_port":9123,"guest_port":80`), `{"return":{"id":1}}`},
		{add(`"proto":"tcp","host_port":9123,"guest_port":80`), bad("add_hostfwd: slirp_add_hostfwd failed")},
		{add(`"proto":"tcp","host_addr":"0.0.0.0","host_port":666,"guest_addr":"","guest_port":1`), bad("add_hostfwd: slirp_add_hostfwd failed")}, // Podman's
		{add(`"proto":"udp","host_addr":"127.0.0.1","host_port":53,"guest_addr":"10.0.2.7","guest_port":54`) + "\n", `{"return":{"id":2}}`},
		{`{"execute":"list_hostfwd"} trailing`, `{"return":{"entries":[` + listed + `]},"entries":[` + listed + `]}`},
		{`{"execute":"remove_hostfwd"}`, bad("remove_hostfwd: bad arguments.id")},
		{`{"execute":"remove_hostfwd","arguments":{"id":"1"}}`, bad("remove_hostfwd: bad arguments.id")},
		{`{"execute":"remove_hostfwd","arguments":{"id":77}}`, bad("remove_hostfwd: bad arguments.id")},
		{`{"execute":"remove_hostfwd","arguments":{"id":1}}`, `{"return":{}}`},
		{`{"execute":"remove_hostfwd","arguments":{"id":1}}`, bad("remove_hostfwd: bad arguments.id")},
		{add(`"proto":"tcp","host_port":9124,"guest_port":80`), `{"return":{"id":3}}`}, // an id is not used again
		{strings.Repeat(" ", 4095), bad("cannot parse JSON")},
		{`{"execute":"list_hostfwd"}` + strings.Repeat(" ", 4096), bad("too large message")},
	} {
		if reply := exchange(t, path, c.request, true); reply != c.reply {
			t.Errorf("%.100s\n got %s\nwant %s", c.request, reply, c.reply)
		}
	}
	if len(fwd.open) != 2 {
		t.Errorf("open: %v, want two", fwd.open)
	}
}

const listed = `{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":9123,"guest_addr":"10.0.2.100","guest_port":80},` +
	`{"id":2,"proto":"udp","host_addr":"127.0.0.1","host_port":53,"guest_addr":"10.0.2.7","guest_port":54}`

// TestAPIAnswersAtOnce: a caller that ends its side of the stream only after the reply receives the reply.
func TestAPIAnswersAtOnce(t *testing.T) {
	path, _ := startAPI(t)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	for _, part := range []string{`{"exec`, `ute":"list_hostfwd"}`} {
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	reply := make([]byte, 100)
	if n, err := c.Read(reply); err != nil || !strings.HasPrefix(string(reply[:n]), `{"return"`) {
		t.Errorf("got %q, %v", reply[:n], err)
	}
}

// TestAPIHangingCaller: callers that send no request delay neither other callers nor Close.
func TestAPIHangingCaller(t *testing.T) {
	path, _ := startAPI(t)
	for range maxClients / 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if reply := exchange(t, path, `{"execute":"list_hostfwd"}`, true); !strings.HasPrefix(reply, `{"return"`) {
		t.Errorf("got %q", reply)
	}
}

// TestAPIReplacesSocket: Listen replaces the socket that a killed helper left behind, and returns an error if the path is a file of
// another kind.
func TestAPIReplacesSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	a, err := Listen(path, netip.MustParseAddr("10.0.2.100"), new(fakeForwarder), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err := Listen(path, netip.MustParseAddr("10.0.2.100"), new(fakeForwarder), slog.New(slog.DiscardHandler)); err == nil {
		a.Close()
		t.Error("a file was replaced")
	}
}
