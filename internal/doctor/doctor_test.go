package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rootlessnet/internal/nettest/skip"
)

func TestMain(m *testing.M) {
	if IsProbe() {
		ProbeMain()
	}
	os.Exit(m.Run())
}

func TestCatalog(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range catalog() {
		if seen[c.Name] {
			t.Errorf("%s is in the catalog twice", c.Name)
		}
		seen[c.Name] = true
		if c.Lost == "" || c.Fix == "" || c.Group == "" {
			t.Errorf("%s: lost %q, fix %q, group %q: none may be empty", c.Name, c.Lost, c.Fix, c.Group)
		}
		if strings.ContainsAny(c.Lost+c.Fix, "\n\t") {
			t.Errorf("%s: lost and fix must be one line each", c.Name)
		}
		if c.Level != Required && c.Level != Optional {
			t.Errorf("%s: level %q", c.Name, c.Level)
		}
	}
	// Every check has a probe, and every probe a check in the catalog.
	probed := map[string]bool{"link": true, "pid-namespace": true, "newuidmap": true, "subordinate-ids": true}
	for _, p := range append(hostProbes(context.Background()), insideProbes()...) {
		for _, n := range p.names {
			probed[n] = true
		}
	}
	for n := range seen {
		if !probed[n] {
			t.Errorf("%s has no probe", n)
		}
	}
	for n := range probed {
		if !seen[n] {
			t.Errorf("%s has a probe but is not in the catalog", n)
		}
	}
}

// loadedTimeout is the timeout of a run on a machine under load.
const loadedTimeout = 20 * time.Second

// TestRun runs all probes on this machine as the user of the tests, and compares the report with what the test finds out by other
// means.
func TestRun(t *testing.T) {
	start := time.Now()
	Run(context.Background(), Options{})
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v, 2 s are allowed", d)
	}
	// Go's runtime opens descriptors once, in the first run. The second run has a timeout for a machine under load.
	fdsBefore := openFiles(t)
	r := Run(context.Background(), Options{Timeout: loadedTimeout})
	got := map[string]Check{}
	for _, c := range r.Checks {
		got[c.Name] = c
		if c.Detail == "" {
			t.Errorf("%s: no detail", c.Name)
		}
		if c.Status == Untried && strings.Contains(c.Detail, "gave no answer") {
			t.Errorf("%s: %s", c.Name, c.Detail)
		}
	}
	if len(r.Checks) != len(catalog()) {
		t.Errorf("%d checks reported, %d in the catalog", len(r.Checks), len(catalog()))
	}
	if r.UID != os.Getuid() || r.Kernel == "" {
		t.Errorf("uid %d, kernel %q", r.UID, r.Kernel)
	}

	if f, err := os.OpenFile(tunPath, os.O_RDWR, 0); errors.Is(err, fs.ErrPermission) {
		if c := got["tun-device"]; c.Status != Denied || c.Fix != "sudo chmod 0666 /dev/net/tun" {
			t.Errorf("opening %s is forbidden, but: %+v", tunPath, c)
		}
	} else if err == nil {
		f.Close()
		if c := got["tun-device"]; c.Status != OK && c.Status != Untried {
			t.Errorf("%s can be opened, but: %+v", tunPath, c)
		}
	}
	if sysctl("net/ipv4/ping_group_range") == "1 0" && got["ping-socket"].Status != Denied {
		t.Errorf("ping_group_range is empty, but: %+v", got["ping-socket"])
	}
	if os.Geteuid() != 0 {
		if n, err := strconv.Atoi(sysctl("net/ipv4/ip_unprivileged_port_start")); err == nil && (n > 1) != (got["low-ports"].Status == Denied) {
			t.Errorf("unprivileged ports start at %d, but: %+v", n, got["low-ports"])
		}
	}
	if n := sysctl("user/max_user_namespaces"); n == "0" && got["user-namespace"].Status == OK && os.Geteuid() != 0 {
		t.Errorf("user namespaces are disabled, but: %+v", got["user-namespace"])
	}
	if got["user-namespace"].Status == OK && got["link"].Status == Untried {
		t.Errorf("there was a namespace to test links in, but: %+v", got["link"])
	}
	if fds := openFiles(t); fds > fdsBefore {
		t.Errorf("%d files open before, %d after", fdsBefore, fds)
	}
}

// TestNamespaces: if user namespaces work here, all probes inside have run.
func TestNamespaces(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), loadedTimeout)
	defer cancel()
	found := childProbe(ctx, roleInside)
	if f := found["user-namespace"]; f.Status != OK {
		skip.Missing(t, "no user namespace here: %s", f.Detail)
	}
	for name, f := range found {
		if f.Status == Untried && !strings.HasPrefix(name, "tap-") {
			t.Errorf("%s: %s: %s", name, f.Status, f.Detail)
		}
	}
	for _, n := range []string{"network-namespace", "mount-namespace", "uts-ipc-namespace"} {
		if f := found[n]; f.Status != OK {
			t.Errorf("%s: %+v", n, f)
		}
	}
}

// TestRunWithoutUserNamespaces runs the probes in a user namespace in which a limit forbids further user namespaces.
func TestRunWithoutUserNamespaces(t *testing.T) {
	if os.Getenv("DOCTOR_NO_USERNS") == "1" {
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			fmt.Println("cannot set the limit:", err)
			os.Exit(3)
		}
		Run(context.Background(), Options{Timeout: loadedTimeout}).WriteJSON(os.Stdout)
		os.Exit(0)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestRunWithoutUserNamespaces$")
	cmd.Env = append(os.Environ(), "DOCTOR_NO_USERNS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	out, err := cmd.Output()
	if err != nil {
		skip.Missing(t, "cannot create a user namespace with the limit: %v %s", err, out)
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if r.OK {
		t.Error("without user namespaces the report is ok")
	}
	const fix = "sudo sysctl -w user.max_user_namespaces=28633"
	for _, c := range r.Checks {
		switch c.Name {
		case "user-namespace":
			if c.Status == OK || c.Fix != fix {
				t.Errorf("%+v", c)
			}
		case "network-namespace", "mount-namespace", "pid-namespace", "nf-tables":
			if c.Status != Untried {
				t.Errorf("%+v", c)
			}
		case "link":
			if c.Status != Untried || c.Fix != fix {
				t.Errorf("the link must have the fix of the user namespace: %+v", c)
			}
		case "udp-segment":
			if c.Status == Untried {
				t.Errorf("udp-segment needs no namespace: %+v", c)
			}
		}
	}
}

func TestTimeout(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	stuck := make(chan struct{})
	defer close(stuck)
	found := runAll(ctx, []probe{
		one("quick", func() finding { return okf("done") }),
		one("stuck", func() finding { <-stuck; return okf("late") }),
	}, nil)
	if found["quick"].Status != OK || found["stuck"].Status != Untried {
		t.Errorf("%+v", found)
	}
	if err := func() error {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := runChild(ctx, roleInside, insideFlags)
		return err
	}(); err == nil {
		t.Error("runChild returned no error after the end of the context")
	}
}

func TestBlame(t *testing.T) {
	tries := func(bad uintptr) func(uintptr) error {
		return func(flags uintptr) error {
			if flags&bad != 0 {
				return &os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: unix.EPERM}
			}
			return nil
		}
	}
	for _, c := range []struct {
		bad  uintptr
		want map[string]Status
	}{
		{syscall.CLONE_NEWUSER, map[string]Status{"user-namespace": Denied, "network-namespace": Untried, "nf-tables": Untried}},
		{syscall.CLONE_NEWNET, map[string]Status{"user-namespace": OK, "network-namespace": Denied, "mount-namespace": OK}},
		{syscall.CLONE_NEWNS, map[string]Status{"user-namespace": OK, "network-namespace": OK, "mount-namespace": Denied}},
		{syscall.CLONE_NEWIPC, map[string]Status{"user-namespace": OK, "uts-ipc-namespace": Denied}},
	} {
		found := blame(unix.EPERM, tries(c.bad))
		for n, s := range c.want {
			if found[n].Status != s {
				t.Errorf("clone flag %#x refused: %s is %+v, want %s", c.bad, n, found[n], s)
			}
		}
		if assemble(found).OK {
			t.Errorf("clone flag %#x refused: the report is ok", c.bad)
		}
	}
}

// TestWithoutCapabilities: the report shows that a user namespace gives no capabilities, as where AppArmor restricts them.
func TestWithoutCapabilities(t *testing.T) {
	if os.Geteuid() == 0 {
		skip.Missing(t, "needs a process without capabilities; it runs as an ordinary user")
	}
	// Without a clone the probe runs in the host's namespaces, where an ordinary user has no capabilities either.
	if f := probeCapabilities()["user-namespace"]; f.Status != Denied || !strings.Contains(f.Detail, "no capabilities") {
		t.Errorf("%+v", f)
	}
	found := untriedInside("reason", "how")
	found["user-namespace"] = finding{Status: Denied}
	found["link"] = linkFinding(found)
	if f := found["link"]; f.Status != Untried || f.Fix != "how" {
		t.Errorf("link: %+v", f)
	}
	if assemble(found).OK {
		t.Error("without capabilities in user namespaces the report is ok")
	}
}

func TestUserNamespaceFix(t *testing.T) {
	for key, want := range map[string]string{
		"user/max_user_namespaces=0":                     "user.max_user_namespaces",
		"kernel/unprivileged_userns_clone=0":             "kernel.unprivileged_userns_clone=1",
		"kernel/apparmor_restrict_unprivileged_userns=1": "kernel.apparmor_restrict_unprivileged_userns=0",
	} {
		path, value, _ := strings.Cut(key, "=")
		got := userNamespaceFix(func(p string) string {
			if p == path {
				return value
			}
			return ""
		})
		if !strings.Contains(got, want) {
			t.Errorf("%s: %q", key, got)
		}
	}
}

func TestFailed(t *testing.T) {
	for err, want := range map[error]Status{
		unix.EPERM: Denied, unix.EACCES: Denied, unix.EROFS: Denied, unix.ENOSPC: Denied, unix.ENOENT: Missing, unix.EINVAL: Missing,
		fmt.Errorf("wrapped: %w", unix.EPERM): Denied,
	} {
		if f := failed("x", err); f.Status != want {
			t.Errorf("%v is %s, want %s", err, f.Status, want)
		}
	}
}

func TestLink(t *testing.T) {
	for _, c := range []struct {
		ok     string
		status Status
		detail string
	}{
		{"tap-vnet-header", OK, "--link tap)"},
		{"packet-link", OK, "--link packet"},
		{"tap-plain", OK, "tap-plain"},
		{"", Missing, "neither"},
	} {
		found := map[string]finding{"tun-device": {Status: Denied}, "packet-link": {Status: Missing}}
		found[c.ok] = finding{Status: OK}
		if f := linkFinding(found); f.Status != c.status || !strings.Contains(f.Detail, c.detail) {
			t.Errorf("with %q: %+v", c.ok, f)
		}
	}
}

// TestJSON: the JSON report has the format that programs rely on.
func TestJSON(t *testing.T) {
	r := Report{OK: false, Kernel: "6.1.0", UID: 1000, Checks: []Check{{Name: "user-namespace", Group: "namespaces",
		Level: Required, Status: Denied, Detail: "clone: operation not permitted", Lost: "everything", Fix: "a <b>"}}}
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	const want = `{
  "ok": false,
  "kernel": "6.1.0",
  "uid": 1000,
  "checks": [
    {
      "name": "user-namespace",
      "group": "namespaces",
      "level": "required",
      "status": "denied",
      "detail": "clone: operation not permitted",
      "lost": "everything",
      "fix": "a <b>"
    }
  ]
}
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestText(t *testing.T) {
	check := func(level Level, s Status) Report {
		return Report{OK: s == OK || level == Optional, Checks: []Check{{Name: "n", Group: "g", Level: level, Status: s,
			Detail: "d", Lost: "what", Fix: "how"}}}
	}
	for _, c := range []struct {
		r          Report
		has, hasnt []string
	}{
		{check(Required, OK), []string{"ok    n  d\n", "Everything works."}, []string{"what", "how"}},
		{check(Required, Missing), []string{"FAIL  n  missing: d", "lost: what", "fix:  how", "1 required missing"}, nil},
		{check(Optional, Denied), []string{"warn  n  denied: d", "lost: what", "fix:  how", "1 optional missing"}, nil},
		{check(Optional, Untried), []string{"warn  n  untried: d"}, []string{"fix:"}},
	} {
		var b bytes.Buffer
		if err := c.r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.has {
			if !strings.Contains(b.String(), s) {
				t.Errorf("no %q in:\n%s", s, b.String())
			}
		}
		for _, s := range c.hasnt {
			if strings.Contains(b.String(), s) {
				t.Errorf("%q in:\n%s", s, b.String())
			}
		}
	}
}

func TestRuntimeDir(t *testing.T) {
	dir := t.TempDir()
	if f := probeRuntimeDir(dir); f.Status != OK {
		t.Errorf("%+v", f)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if f := probeRuntimeDir(dir + "/none"); f.Status != Missing {
		t.Errorf("%+v", f)
	}
	if f := probeRuntimeDir(""); f.Status != Missing {
		t.Errorf("%+v", f)
	}
}

func TestAcks(t *testing.T) {
	ack := func(seq uint32, errno int32) []byte {
		b := nlmsg{typ: unix.NLMSG_ERROR}.append(nil, 0, 0, seq)
		// The four bytes after the header are the errno in place of struct nfgenmsg.
		copy(b[unix.NLMSG_HDRLEN:], []byte{byte(-errno), byte(-errno >> 8), byte(-errno >> 16), byte(-errno >> 24)})
		return b
	}
	if done, err := acks(append(ack(1, 0), ack(2, 0)...), 2); !done || err != nil {
		t.Error(done, err)
	}
	if done, err := acks(ack(1, 0), 2); done || err != nil {
		t.Error(done, err)
	}
	if _, err := acks(append(ack(1, 0), ack(2, int32(unix.ENOENT))...), 2); err != unix.ENOENT {
		t.Error(err)
	}
	if _, err := acks([]byte{255, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 2); err == nil {
		t.Error("a message length beyond the end was accepted")
	}
}

func FuzzAcks(f *testing.F) {
	f.Add(nlmsg{typ: unix.NLMSG_ERROR}.append(nil, 0, 0, 2))
	f.Add(make([]byte, 17))
	f.Fuzz(func(t *testing.T, b []byte) { acks(b, 2) })
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
