package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/guest"
	"rootlessnet/internal/nettest/topo"
)

// onHostFiles is the first argument of the test binary that starts a program on a host with an /etc and a /run of the test:
// ETC RUN PROGRAM [ARG...].
const onHostFiles = "on-host-files"

// enterHostFiles mounts the directories in the mount namespace of this process, which is its own, and executes the program.
func enterHostFiles(args []string) error {
	for from, to := range map[string]string{args[0]: "/etc", args[1]: "/run"} {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", from, to, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec(args[2], args[2:], os.Environ())
}

// hostFiles is a host whose files of name resolution the test may replace: outside, in directories of its own, where
// nothing keeps it from doing so.
type hostFiles struct {
	*lab
	etc, run string
	holder   int // pid
}

func newHostFiles(t *testing.T) *hostFiles {
	t.Helper()
	l := newLab(t)
	l.serveDNS()
	h := &hostFiles{lab: l, etc: filepath.Join(l.runtime, "etc"), run: filepath.Join(l.runtime, "run")}
	for _, dir := range []string{h.etc + "/conf.d", h.etc + "/old.d", h.run + "/NetworkManager", h.run + "/systemd"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/resolv.conf":   h.resolvConf(),
		"etc/hosts":         "192.0.2.1 of-the-host\n",
		"etc/nsswitch.conf": "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n",
		"etc/hostname":      "the-host\n",
		"etc/edited":        "edited 1\n",
		"etc/replaced":      "replaced 1\n",
		"etc/removed":       "removed 1\n",
		"etc/conf.d/a":      "a 1\n",
		"etc/old.d/a":       "old 1\n",

		"run/NetworkManager/resolv.conf": "nameserver 127.0.0.53\n",
		"run/NetworkManager/other":       "other 1\n",
	} {
		h.write(filepath.Join(h.runtime, name), text)
	}
	h.link("edited", h.etc+"/link")
	h.hold()
	return h
}

// resolvConf names the tests' server.
func (h *hostFiles) resolvConf() string { return fmt.Sprintf("nameserver %v\n", topo.There4) }

// write replaces the file by rename, as most programs do.
func (h *hostFiles) write(path, text string) {
	h.Helper()
	temporary := filepath.Join(h.runtime, "temporary")
	err := os.WriteFile(temporary, []byte(text), 0o644)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		h.Fatal(err)
	}
}

// link replaces the file by a symbolic link.
func (h *hostFiles) link(target, path string) {
	h.Helper()
	temporary := filepath.Join(h.runtime, "temporary")
	err := os.Symlink(target, temporary)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		h.Fatal(err)
	}
}

func (h *hostFiles) remove(path string) {
	h.Helper()
	if err := os.RemoveAll(path); err != nil {
		h.Fatal(err)
	}
}

// content is every file of the host with its text or target.
func (h *hostFiles) content() map[string]string {
	h.Helper()
	all := make(map[string]string)
	for _, root := range []string{h.etc, h.run} {
		err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			text := []byte(nil)
			switch {
			case info.Mode().IsRegular():
				text, err = os.ReadFile(path)
			case info.Mode()&os.ModeSymlink != 0:
				var target string
				target, err = os.Readlink(path)
				text = []byte(target)
			}
			all[path] = fmt.Sprint(info.Mode(), " ", string(text))
			return err
		})
		if err != nil {
			h.Fatal(err)
		}
	}
	return all
}

// hold starts the process whose mount namespace the host's files are in.
func (h *hostFiles) hold() {
	h.Helper()
	cmd := h.Here.Command(self(), onHostFiles, h.etc, h.run, "/bin/sh", "-c", "echo; exec sleep 1000")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	h.launch(cmd)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		h.Fatalf("the host's files: %v", err)
	}
	h.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	h.holder = cmd.Process.Pid
}

// command prepares one of our programs on this host, as the same user without privilege.
func (h *hostFiles) command(name string, args ...string) *topo.Cmd {
	cmd := h.lab.command(name, args...)
	enter := h.Here.Command(append([]string{"nsenter", "--target", strconv.Itoa(h.holder), "--user", "--mount", "--preserve-credentials", "--wd=/", "--"}, cmd.Args...)...)
	enter.Env = cmd.Env
	return enter
}

var boxes int

// start runs a sandbox with the agent inside on this host.
func (h *hostFiles) start(flags ...string) *sandbox {
	h.Helper()
	boxes++
	name := fmt.Sprintf("filed%d", boxes)
	args := append(append([]string{"--name", name}, flags...), "--")
	return h.agent(name, h.command("rootless-run", append(args, agentProgram()...)...))
}

// text is a file inside, "" if there is none.
func text(s *sandbox, path string) string {
	s.Helper()
	return do(s, guest.ReadFile{Path: path}).Text
}

// wantText expects the text of files inside.
func (s *sandbox) wantText(when string, want map[string]string) {
	s.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got := text(s, path); got != want[path] {
			s.Errorf("%s: %s has %q, want %q", when, path, got, want[path])
		}
	}
}

// oursInside are the files of name resolution as the sandbox has them from its start.
func oursInside(s *sandbox) map[string]string {
	s.Helper()
	files := make(map[string]string)
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/hostname", "/run/NetworkManager/resolv.conf"} {
		files[path] = text(s, path)
	}
	for path, part := range map[string]string{
		"/etc/resolv.conf": "nameserver 10.0.2.2\n", "/run/NetworkManager/resolv.conf": "nameserver 10.0.2.2\n",
		"/etc/hosts": "host.docker.internal", "/etc/nsswitch.conf": "passwd: files\nhosts: files dns\n", "/etc/hostname": do(s, guest.ReadHostname{}) + "\n",
	} {
		if !strings.Contains(files[path], part) {
			s.Errorf("at the start %s has %q, want %q", path, files[path], part)
		}
	}
	return files
}

// wantResolved expects that the C library inside finds a name by DNS, and one of our hosts file.
func (s *sandbox) wantResolved(when string) {
	s.Helper()
	eventually(s.T, 10*time.Second, func() string {
		ran := do(s, guest.RunShell{Script: "getent ahostsv4 example.test && getent hosts host.docker.internal"})
		if ran.Code != 0 || !strings.Contains(ran.Output, "192.0.2.80") {
			return fmt.Sprintf("%s: %+v", when, ran)
		}
		return ""
	})
}

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
