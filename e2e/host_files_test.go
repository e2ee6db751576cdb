package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// TestHostReplacesItsFiles: whatever the host does to its files of name resolution, and however often, the sandbox reads its own.
func TestHostReplacesItsFiles(t *testing.T) {
	for _, mode := range []string{"keep-id", "root"} {
		t.Run(mode, func(t *testing.T) { newHostFiles(t).replaces("--userns", mode) })
	}
}

func (h *hostFiles) replaces(flags ...string) {
	resolv := h.etc + "/resolv.conf"
	s := h.start(flags...)
	member := h.agent("member", h.command("rootless-run", append([]string{"--network", "container:" + s.name, "--"}, agentProgram()...)...))
	ours := oursInside(s)
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"nothing has happened", func() {}},
		{"resolv.conf was replaced by rename", func() { h.write(resolv, h.resolvConf()) }},
		{"resolv.conf became a link", func() { h.link("../run/NetworkManager/resolv.conf", resolv) }},
		{"the target was replaced by rename", func() { h.write(h.run+"/NetworkManager/resolv.conf", "nameserver 127.0.0.54\n") }},
		{"the link leads elsewhere", func() { h.link(h.run+"/systemd/resolve/stub-resolv.conf", resolv) }},
		{"resolv.conf was removed", func() { h.remove(resolv) }},
		{"resolv.conf is there again", func() { h.write(resolv, h.resolvConf()) }},
		{"hosts and nsswitch.conf were replaced", func() {
			h.write(h.etc+"/hosts", "192.0.2.66 host.docker.internal example.test\n")
			h.write(h.etc+"/nsswitch.conf", "hosts: resolve\n")
			h.write(h.etc+"/hostname", "renamed\n")
		}},
		{"hosts and nsswitch.conf were removed", func() { h.remove(h.etc + "/hosts"); h.remove(h.etc + "/nsswitch.conf") }},
		{"NetworkManager was removed", func() { h.remove(h.run + "/NetworkManager") }},
	} {
		step.do()
		if strings.HasPrefix(step.what, "NetworkManager") {
			delete(ours, "/run/NetworkManager/resolv.conf")
		}
		s.wantText(step.what, ours)
		member.wantText(step.what+", in a member", ours)
		if h.Failed() {
			h.FailNow()
		}
	}
	s.wantResolved("at the end")
	member.wantResolved("at the end, in a member")
	// Not for a moment is the host's file seen.
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		temporary := filepath.Join(h.runtime, "again")
		for {
			_ = os.WriteFile(temporary, []byte("nameserver 127.0.0.53\n"), 0o644)
			_ = os.Rename(temporary, resolv)
			_ = os.Symlink("/nowhere", temporary)
			_ = os.Rename(temporary, resolv)
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	ran := do(s, guest.RunShell{Script: `i=0; while [ $i -lt 5000 ]; do read word address < /etc/resolv.conf; [ "$address" = 10.0.2.2 ] || { echo "$address"; exit 1; }; i=$((i+1)); done`})
	close(done)
	<-ended
	if ran.Code != 0 {
		h.Errorf("while the host replaces its file: %+v", ran)
	}
	member.stop()
	s.stop()
}

// TestNoResolvConfOnTheHost: without a resolv.conf, or with a link that leads nowhere, the sandbox has its own and DNS works,
// with --dns at once and without it as soon as the host has one.
func TestNoResolvConfOnTheHost(t *testing.T) {
	for name, make := range map[string]func(h *hostFiles){
		"missing":   func(h *hostFiles) { h.remove(h.etc + "/resolv.conf") },
		"dangling":  func(h *hostFiles) { h.link("../run/systemd/resolve/stub-resolv.conf", h.etc+"/resolv.conf") },
		"itself":    func(h *hostFiles) { h.link("resolv.conf", h.etc+"/resolv.conf") },
		"directory": func(h *hostFiles) { h.remove(h.etc + "/resolv.conf"); _ = os.Mkdir(h.etc+"/resolv.conf", 0o755) },
		"no files": func(h *hostFiles) {
			for _, name := range []string{"resolv.conf", "hosts", "nsswitch.conf", "hostname"} {
				h.remove(h.etc + "/" + name)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostFiles(t)
			make(h)
			before := h.content()
			s := h.start("--dns", topo.There4.String())
			s.wantText("with --dns", map[string]string{"/etc/resolv.conf": "nameserver 10.0.2.2\n"})
			s.wantResolved("with --dns")
			if after := h.content(); !maps.Equal(before, after) {
				t.Errorf("the host's files: %v, before %v", after, before)
			}
			s.stop()
			s = h.start()
			s.wantText("without --dns", map[string]string{"/etc/resolv.conf": "nameserver 10.0.2.2\n"})
			h.remove(h.etc + "/resolv.conf")
			h.write(h.etc+"/resolv.conf", h.resolvConf())
			s.wantResolved("without --dns, when the host has a file")
			s.stop()
		})
	}
}

// TestHostFilesAreFollowed: what is not ours in /etc is the host's, now and after each change, also in sandboxes that joined and
// in mount namespaces that the command made. The host's files are not changed.
func TestHostFilesAreFollowed(t *testing.T) {
	h := newHostFiles(t)
	s := h.start("--userns", "root")
	member := h.agent("member", h.command("rootless-run", append([]string{"--network", "container:" + s.name, "--"}, agentProgram()...)...))
	do(s, guest.RunShell{Script: "unshare --mount sleep 60 >/dev/null 2>&1 & echo $! > " + h.runtime + "/pid; sleep 0.3"})
	pid, err := os.ReadFile(h.runtime + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	copied := "/proc/" + strings.TrimSpace(string(pid)) + "/root"
	want := map[string]string{"/etc/edited": "edited 1\n", "/etc/link": "edited 1\n", "/etc/replaced": "replaced 1\n", "/etc/removed": "removed 1\n",
		"/etc/conf.d/a": "a 1\n", "/etc/old.d/a": "old 1\n", "/etc/added": "", "/etc/new.d/a": "", "/run/NetworkManager/other": "other 1\n"}
	s.wantText("at the start", want)
	member.wantText("at the start, in a member", want)
	before := h.content()
	for _, script := range []string{"echo x > /etc/added", "mkdir /etc/new.d", "rm -f /etc/removed", "mv /etc/conf.d /etc/moved"} {
		if ran := do(s, guest.RunShell{Script: script}); ran.Code == 0 {
			t.Errorf("inside, %q: %+v", script, ran)
		}
	}
	if ran := do(s, guest.RunShell{Script: "echo 'a 2' > /etc/conf.d/a"}); ran.Code != 0 {
		t.Errorf("a file of the user cannot be written: %+v", ran)
	}
	before[h.etc+"/conf.d/a"] = strings.Replace(before[h.etc+"/conf.d/a"], "a 1", "a 2", 1)
	if after := h.content(); !maps.Equal(before, after) {
		t.Errorf("the host's files: %v, before %v", after, before)
	}

	h.write(h.etc+"/replaced", "replaced 2\n")
	h.write(h.etc+"/added", "added 2\n")
	h.remove(h.etc + "/removed")
	h.link("replaced", h.etc+"/link")
	h.remove(h.etc + "/old.d")
	if err := os.Mkdir(h.etc+"/new.d", 0o755); err != nil {
		t.Fatal(err)
	}
	h.write(h.etc+"/new.d/a", "new 2\n")
	h.write(h.run+"/NetworkManager/other", "other 2\n")
	if err := os.WriteFile(h.etc+"/edited", []byte("edited 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	maps.Copy(want, map[string]string{"/etc/edited": "edited 2\n", "/etc/link": "replaced 2\n", "/etc/replaced": "replaced 2\n", "/etc/removed": "",
		"/etc/conf.d/a": "a 2\n", "/etc/old.d/a": "", "/etc/added": "added 2\n", "/etc/new.d/a": "new 2\n", "/run/NetworkManager/other": "other 2\n"})
	for when, look := range map[string]struct {
		box  *sandbox
		root string
	}{"inside": {s, ""}, "in a member": {member, ""}, "in a copy of the mount namespace": {s, copied}} {
		eventually(t, 5*time.Second, func() string {
			for path, content := range want {
				if got := text(look.box, look.root+path); got != content {
					return fmt.Sprintf("%s, %s has %q, want %q", when, path, got, content)
				}
			}
			return ""
		})
	}
	// And once more, for entries that are links by now.
	h.write(h.etc+"/replaced", "replaced 3\n")
	s.wantText("later", map[string]string{"/etc/replaced": "replaced 3\n", "/etc/link": "replaced 3\n"})
	member.stop()
	s.stop()
}

// TestNameServicesThatAppear: sockets by which the C library would ask the host are covered when their directories appear.
func TestNameServicesThatAppear(t *testing.T) {
	h := newHostFiles(t)
	h.remove(h.run + "/NetworkManager")
	s := h.start()
	for _, dir := range []string{"nscd", "systemd/resolve", "NetworkManager"} {
		if err := os.Mkdir(filepath.Join(h.run, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		h.write(filepath.Join(h.run, dir, "resolv.conf"), "nameserver 127.0.0.53\n")
	}
	for path, want := range map[string]string{"/run/nscd/resolv.conf": "", "/run/systemd/resolve/resolv.conf": "nameserver 10.0.2.2\n",
		"/run/NetworkManager/resolv.conf": "nameserver 10.0.2.2\n"} {
		eventually(t, 5*time.Second, func() string {
			if got := text(s, path); got != want {
				return fmt.Sprintf("%s has %q, want %q", path, got, want)
			}
			return ""
		})
	}
	if got := do(s, guest.QueryDNS{Server: gateway4, Name: "example.test", Type: dns.TypeA}); !slices.Equal(got.Data, []string{"192.0.2.80"}) {
		t.Error(got)
	}
	s.stop()
}

// TestManyFilesOnTheHost: an /etc with more entries than become mounts is the same inside, and so it is in a sandbox inside.
func TestManyFilesOnTheHost(t *testing.T) {
	const files = 1100 // more than maxBound of userns
	h := newHostFiles(t)
	last := h.etc + fmt.Sprintf("/z%04d", files)
	for i := range files {
		if err := os.WriteFile(h.etc+fmt.Sprintf("/z%04d", i+1), fmt.Appendf(nil, "%d\n", i+1), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := h.start()
	s.wantText("at the start", map[string]string{"/etc/z0001": "1\n", "/etc/z1100": "1100\n"})
	h.write(last, "changed\n")
	h.write(h.etc+"/replaced", "replaced 2\n")
	eventually(t, 5*time.Second, func() string {
		if got := text(s, "/etc/replaced") + text(s, "/etc/z1100"); got != "replaced 2\nchanged\n" {
			return got
		}
		return ""
	})
	ran := do(s, guest.RunShell{Script: filepath.Join(bins, "rootless-run") + " -- cat /etc/z0001 /etc/z1100 /etc/replaced /etc/resolv.conf"})
	// The subnet of the outer one is taken.
	if want := "1\nchanged\nreplaced 2\nnameserver 10.0.3.2\n"; ran.Code != 0 || ran.Output != want {
		t.Errorf("in a sandbox inside: %+v, want %q", ran, want)
	}
	s.stop()
}
