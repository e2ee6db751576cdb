package userns

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"rootlessnet/netns"
)

func TestFilterNsswitch(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "hosts: files dns\n", ""},
		{"ubuntu", "passwd: files systemd\nhosts:          mymachines resolve [!UNAVAIL=return] files myhostname dns\nnetworks: files\n",
			"passwd: files systemd\nhosts: files myhostname dns\nnetworks: files\n"},
		{"mdns", "hosts: files mdns4_minimal [NOTFOUND=return] dns mdns4", "hosts: files dns"},
		{"kept action", "hosts: files [SUCCESS=return] resolve dns\n", "hosts: files [SUCCESS=return] dns\n"},
		{"action with blanks", "hosts: resolve [ !UNAVAIL=return  TRYAGAIN=continue ] dns\n", "hosts: files dns\n"},
		{"no blanks", "hosts:resolve[!UNAVAIL=return]files dns # c\n", "hosts: files dns # c\n"},
		{"nothing left", "hosts: resolve\n", "hosts: files dns\n"},
		{"comment only", "# hosts: resolve\n", ""},
		{"another database", "passwd: resolve mdns\n", ""},
		{"unclosed", "hosts: files resolve [x\n", "hosts: files dns\n"},
	} {
		out, changed := filterNsswitch([]byte(c.in))
		want := c.want
		if want == "" {
			want = c.in
		}
		if string(out) != want || changed != (c.want != "") {
			t.Errorf("%s: got %q (changed %v), want %q", c.name, out, changed, want)
		}
	}
}

func FuzzFilterNsswitch(f *testing.F) {
	f.Add([]byte("hosts: mymachines resolve [!UNAVAIL=return] files dns\n"))
	f.Add([]byte("hosts:[x]mdns[]] #"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, changed := filterNsswitch(in)
		if !changed && !bytes.Equal(in, out) {
			t.Fatalf("unchanged, but %q became %q", in, out)
		}
		if again, changed := filterNsswitch(out); changed {
			t.Fatalf("%q became %q and then %q", in, out, again)
		}
		if bytes.Count(in, []byte("\n")) != bytes.Count(out, []byte("\n")) {
			t.Fatalf("lines lost: %q became %q", in, out)
		}
	})
}

func FuzzParseMessage(f *testing.F) {
	for _, m := range []message{
		{Type: msgRun, Run: &runBody{Argv: [][]byte{[]byte("true")}}},
		{Type: msgReady, Ready: &readyBody{Kind: netns.KindTAP}},
		{Type: msgFailed, Fail: &failBody{Text: "x", Code: 126}},
		{Type: msgExited, Code: 3}, {Type: msgRun, Large: 100},
	} {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			if !errors.Is(err, errProtocol) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if m.Large == 0 && ((m.Type == msgFailed && m.Fail == nil) || (m.Type == msgRun && m.Run == nil)) {
			t.Fatalf("accepted without its body: %q", b)
		}
		if m.Fail != nil {
			_ = m.Fail.err().Error()
		}
	})
}

// TestSocket: a message and its descriptors arrive whole, small and large; one that does not fit its type is refused.
func TestSocket(t *testing.T) {
	a, f, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	b, err := newSocket(f)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, size := range []int{0, 1 << 20} {
		arg := bytes.Repeat([]byte{0xff}, size) // not UTF-8
		if err := a.send(&message{Type: msgRun, Run: &runBody{Argv: [][]byte{arg}}}, 0, r, w, w); err != nil {
			t.Fatal(err)
		}
		m, fds, _, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		if len(fds) != 3 || !bytes.Equal(m.Run.Argv[0], arg) {
			t.Errorf("size %d: %d descriptors, %d bytes", size, len(fds), len(m.Run.Argv[0]))
		}
		closeAll(fds)
	}
	for name, send := range map[string]func() error{
		"too few fds":   func() error { return a.send(&message{Type: msgRun, Run: &runBody{}}, 0, r) },
		"unexpected fd": func() error { return a.send(&message{Type: msgDone}, 0, r) },
		"unknown type":  func() error { return a.send(&message{Type: "format"}, 0) },
		"two bodies":    func() error { return a.send(&message{Type: msgDone, Files: &Files{}}, 0) },
		"no memfd":      func() error { return a.send(&message{Type: msgDone, Large: 5}, 0) },
		"wrong memfd":   func() error { return a.send(&message{Type: msgDone, Large: 5}, 0, r) },
		"too large":     func() error { return a.send(&message{Type: msgDone, Large: largeMax + 1}, 0, r) },
		"not JSON":      func() error { _, err := a.conn.Write([]byte("x")); return err },
		"truncated":     func() error { _, err := a.conn.Write(make([]byte, inlineMax+1)); return err },
	} {
		before := openFDs(t)
		if err := send(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if m, _, _, err := b.receive(); err == nil {
			t.Errorf("%s: accepted %+v", name, m)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%s: %d descriptors before, %d after", name, before, after)
		}
	}
	if err := a.send(&message{Type: msgFiles, Files: &Files{Hosts: make([]byte, largeMax)}}, 0); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("over largeMax: %v", err)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestErrorsCross(t *testing.T) {
	e := toFail(&Error{Op: "open link tap", Err: syscall.EACCES, Hint: "h"}).err()
	if e.Error() != "open link tap: permission denied (h)" || !errors.Is(e, fs.ErrPermission) {
		t.Errorf("%v", e)
	}
	e = toFail(&ExecError{CodeNotFound, errors.New("x")}).err()
	var ee *ExecError
	if !errors.As(e, &ee) || ee.Code != CodeNotFound || e.Error() != "x" {
		t.Errorf("%#v", e)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "tool")
	if err := os.WriteFile(tool, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err := lookPath("tool", []string{"PATH=/nonexistent", "PATH=/nonexistent:" + dir}); err != nil || p != tool {
		t.Errorf("got %q, %v", p, err)
	}
	for name, want := range map[string]error{
		"nothing": fs.ErrNotExist, "text": fs.ErrNotExist, "": fs.ErrNotExist,
		dir: syscall.EISDIR, filepath.Join(dir, "text"): fs.ErrPermission, dir + "/no": fs.ErrNotExist,
	} {
		if _, err := lookPath(name, []string{"PATH=" + dir}); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", name, err, want)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"network": {Network: "bridge"}, "ids": {IDMap: "x"}, "join without pid": {Network: NetworkJoin},
		"mtu": {Link: netns.Link{MTU: 67}}, "kind": {Link: netns.Link{Kind: "wire"}}, "hidden": {Hidden: []string{"x"}},
		"name": {Link: netns.Link{Name: "a234567890123456"}}, "mac": {Link: netns.Link{MAC: []byte{1}}},
	} {
		if _, err := Start(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestLastMessageBeforeClose: a message that was sent before the other end was closed is received, even if that end was closed with
// a message of ours unread.
func TestLastMessageBeforeClose(t *testing.T) {
	ours, file, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.close()
	theirs, err := newSocket(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.send(&message{Type: msgSignal, Signal: 15}, 0); err != nil {
		t.Fatal(err)
	}
	if err := theirs.send(&message{Type: msgExited, Code: 130}, 0); err != nil {
		t.Fatal(err)
	}
	theirs.close()
	if m, _, _, err := ours.receive(); err != nil || m.Type != msgExited || m.Code != 130 {
		t.Fatalf("got %+v, %v", m, err)
	}
	if _, _, _, err := ours.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last message: %v, want EOF", err)
	}
}
