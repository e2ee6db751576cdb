package state

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestMain lets the test binary run as a supervisor, which a test kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STATE_TEST_SUPERVISOR"); dir != "" {
		d, err := Open(dir)
		var e *Entry
		if err == nil {
			e, err = d.Create("victim")
		}
		if keep := os.Getenv("STATE_TEST_KEEP") != ""; err == nil && (keep || os.Getenv("STATE_TEST_RUNNING") != "") {
			err = e.Update(func(r *Record) { r.Status, r.Keep = Running, keep })
		}
		fmt.Println("ready", err)
		var b [1]byte
		os.Stdin.Read(b[:]) // blocks until the test kills the process
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func create(t *testing.T, d *Dir, name string) *Entry {
	t.Helper()
	e, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestEntryLifecycle(t *testing.T) {
	d := open(t)
	e := create(t, d, "web")
	if len(e.ID()) != 64 || filepath.Base(e.Path()) != e.ID()[:12] {
		t.Errorf("id %s path %s", e.ID(), e.Path())
	}
	if st, err := os.Stat(e.Path()); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st, err)
	}
	if err := e.Update(func(r *Record) { r.Status, r.InitPID, r.Name = Running, 7, "other" }); err != nil {
		t.Fatal(err)
	}
	if r, err := e.Record(); err != nil || r.InitPID != 7 || r.Name != "web" {
		t.Errorf("%+v %v", r, err)
	}
	for _, ref := range []string{"web", "/web", e.ID(), e.ID()[:12], e.ID()[:5]} {
		r, err := d.Lookup(ref)
		if err != nil || r.ID != e.ID() || r.Status != Running || r.InitPID != 7 || r.Name != "web" {
			t.Errorf("%s: %+v %v", ref, r, err)
		}
		if r.Supervisor.PID != os.Getpid() || r.Supervisor.StartTime == 0 {
			t.Errorf("supervisor %+v", r.Supervisor)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Error("second Close:", err)
	}
	if err := e.Update(func(*Record) { t.Error("called") }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(e.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory was not removed:", err)
	}
	if _, err := d.Lookup("web"); !errors.Is(err, ErrNotFound) || err.Error() != "No such sandbox: web" {
		t.Error(err)
	}
	create(t, d, "web")
}

func TestNameIsClaimedOnce(t *testing.T) {
	d := open(t)
	const tries = 16
	var won atomic.Int32
	var wg sync.WaitGroup
	for range tries {
		wg.Go(func() {
			// Each goroutine has its own Dir, as another process would.
			other, err := Open(d.Path())
			if err != nil {
				t.Error(err)
				return
			}
			e, err := other.Create("db")
			switch {
			case err == nil:
				won.Add(1)
				t.Cleanup(func() { e.Close() })
			case !errors.Is(err, ErrNameInUse):
				t.Error(err)
			case !strings.HasPrefix(err.Error(), `Conflict. The name "/db" is already in use by sandbox "`):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of %d have claimed the name", won.Load(), tries)
	}
	if records, err := d.List(); err != nil || len(records) != 1 {
		t.Errorf("%v %v", records, err)
	}
}

func TestDefaultNamesAreUnique(t *testing.T) {
	d := open(t)
	a, b := create(t, d, ""), create(t, d, "")
	if a.Name() == b.Name() || a.Name() != a.ID()[:12] {
		t.Error(a.Name(), b.Name())
	}
	records, err := d.List()
	if err != nil || len(records) != 2 || records[0].Created.Before(records[1].Created) {
		t.Errorf("%v %v", records, err)
	}
}

func TestKilledSupervisorIsRemoved(t *testing.T) {
	d := open(t)
	create(t, d, "survivor")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "STATE_TEST_SUPERVISOR="+d.Path())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready <nil>\n" {
		t.Fatal(line, err)
	}
	victim, err := d.Lookup("victim")
	if err != nil || victim.Supervisor.PID != cmd.Process.Pid {
		t.Fatalf("%+v %v", victim, err)
	}
	if _, err := d.Create("victim"); !errors.Is(err, ErrNameInUse) {
		t.Error(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if records, err := d.List(); err != nil || len(records) != 1 || records[0].Name != "survivor" {
		t.Errorf("%v %v", records, err)
	}
	if _, err := os.Stat(filepath.Join(d.Path(), victim.ShortID())); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory was not removed:", err)
	}
	create(t, d, "victim")
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	d := open(t)
	outside := t.TempDir()
	keep := filepath.Join(outside, "precious")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(d.Path(), "0123456789ab")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.Path(), "notes"), 0o700); err != nil {
		t.Fatal(err)
	}
	if records, err := d.List(); err != nil || len(records) != 0 {
		t.Errorf("%v %v", records, err)
	}
	for _, path := range []string{keep, filepath.Join(d.Path(), "notes")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	a, b := strings.Repeat("ab", 32), "ab"+strings.Repeat("cd", 31)
	records := []Record{{ID: a, Name: "x"}, {ID: b, Name: "abab"}}
	for ref, want := range map[string]string{
		"ab": "multiple IDs found with provided prefix: ab", "": "No such sandbox: ", "ac": "No such sandbox: ac",
	} {
		if r, err := find(records, ref); err == nil || err.Error() != want {
			t.Errorf("%q: %v %v", ref, r, err)
		}
	}
	if r, err := find(records, "abab"); err != nil || r.ID != b {
		t.Error("a name must take precedence over a prefix:", r, err)
	}
	if _, err := find(records, "ab"); !errors.Is(err, ErrAmbiguous) {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	base := t.TempDir()
	link := filepath.Join(base, "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link); err == nil {
		t.Error("a symbolic link was followed")
	}
	wide := filepath.Join(base, "wide")
	if err := os.Mkdir(wide, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(wide, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(wide); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(wide); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	if os.Geteuid() == 0 {
		theirs := filepath.Join(base, "theirs")
		if err := os.Mkdir(theirs, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(theirs, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(theirs); !errors.Is(err, os.ErrPermission) {
			t.Error(err)
		}
	} else if _, err := Open("/"); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}

func TestDefaults(t *testing.T) {
	for xdg, want := range map[string]string{
		"/run/user/7": "/run/user/7/rootless-run /run/user/7/rootless-run /tmp/rootless-run-7",
		"relative":    "/run/user/7/rootless-run /tmp/rootless-run-7",
		"":            "/run/user/7/rootless-run /tmp/rootless-run-7",
	} {
		if got := strings.Join(defaults(xdg, 7), " "); got != want {
			t.Errorf("%s: %s", xdg, got)
		}
	}
	if got, want := strings.Join(defaults("", 0), " "), "/run/user/0/rootless-run /run/rootless-run /tmp/rootless-run-0"; got != want {
		t.Errorf("root: %s", got)
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	d, err := Open("")
	if err != nil || d.Path() != filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "rootless-run") {
		t.Error(d, err)
	}
}
